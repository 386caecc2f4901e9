import pytest

from gh_downstream.detection.data import CITYSCAPES_CLASSES, load_cityscapes


@pytest.mark.parametrize("classes", [("car",), ("bicycle", "person"), CITYSCAPES_CLASSES[::-1]])
def test_selecting_classes_keeps_their_annotations_and_all_images(tree, classes):
    dataset = load_cityscapes(tree, "train")
    selected = dataset.select(classes)
    assert selected.classes == classes
    assert [record["file_name"] for record in selected.records] == [record["file_name"] for record in dataset.records]

    def named(dataset, record):
        return [(dataset.classes[a["category_id"]], a["bbox"], a["area"], a["iscrowd"]) for a in record["annotations"]]

    for before, after in zip(dataset.records, selected.records, strict=True):
        assert named(selected, after) == [item for item in named(dataset, before) if item[0] in classes]
    assert selected.num_boxes > 0


def test_an_unknown_class_is_named(tree):
    with pytest.raises(ValueError, match=r"has no classes \['tram'\]; it has person, rider"):
        load_cityscapes(tree, "val").select(["car", "tram"])
