import contextlib
import io

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gh_downstream.detection.data import DetectionDataset


def make_dataset() -> DetectionDataset:
    def box(x, y, width, height, category, iscrowd=0):
        area = float(width * height)
        return {"bbox": [x, y, width, height], "category_id": category, "area": area, "iscrowd": iscrowd}

    def record(name, annotations):
        return {"file_name": f"{name}.png", "image_id": name, "height": 60, "width": 100, "annotations": annotations}

    return DetectionDataset(
        name="streets_foggy_0.02_val",
        classes=("person", "car"),
        records=[
            record("a_1", [box(1.0, 2.0, 30.0, 40.0, 0), box(50.0, 5.0, 40.0, 40.0, 1, iscrowd=1)]),
            record("b_2", []),
            record("c_3", [box(10.0, 10.0, 20.0, 20.0, 1)]),
        ],
        fog_density=0.02,
    )


def test_counts_every_image_and_leaves_crowds_out_of_the_boxes():
    dataset = make_dataset()
    assert len(dataset) == 3
    assert dataset.num_boxes == 2


def test_without_labels_hides_all_annotations_and_nothing_else():
    dataset = make_dataset()
    hidden = dataset.without_labels()
    assert hidden.num_boxes == 0
    assert all(record["annotations"] == [] for record in hidden.records)
    assert [record["image_id"] for record in hidden.records] == ["a_1", "b_2", "c_3"]
    assert (hidden.name, hidden.classes, hidden.fog_density) == (dataset.name, dataset.classes, 0.02)
    assert dataset.num_boxes == 2


def test_to_coco_keeps_image_ids_and_numbers_annotations_from_one():
    coco = make_dataset().to_coco()
    assert [image["id"] for image in coco["images"]] == ["a_1", "b_2", "c_3"]
    assert [annotation["id"] for annotation in coco["annotations"]] == [1, 2, 3]
    assert [annotation["category_id"] for annotation in coco["annotations"]] == [1, 2, 2]
    assert [annotation["iscrowd"] for annotation in coco["annotations"]] == [0, 1, 0]
    assert coco["categories"] == [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}]
    assert coco["info"]["fog_density"] == 0.02


def test_perfect_detections_reach_full_precision_in_pycocotools():
    """A detection on the ignored group must not count against them."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = make_dataset().to_coco()
        truth.createIndex()
        detections = truth.loadRes(
            [
                {"image_id": "a_1", "category_id": 1, "bbox": [1.0, 2.0, 30.0, 40.0], "score": 0.9},
                {"image_id": "a_1", "category_id": 2, "bbox": [55.0, 8.0, 10.0, 10.0], "score": 0.95},
                {"image_id": "c_3", "category_id": 2, "bbox": [10.0, 10.0, 20.0, 20.0], "score": 0.8},
            ]
        )
        evaluation = COCOeval(truth, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.params.imgIds == ["a_1", "b_2", "c_3"]
    assert evaluation.stats[0] > 0.999
