import json
import logging

import pytest
from PIL import Image

from gh_downstream.detection.data import BDD100K_CLASSES, CITYSCAPES_CLASSES, load_bdd100k_daytime
from tests.detection.data.wrong_values import refusals


def label(category, corners, **attributes):
    box = dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True))
    return {"category": category, "box2d": box, "attributes": attributes}


def frame(name, labels, timeofday="daytime"):
    return {"name": f"{name}.jpg", "attributes": {"timeofday": timeofday, "weather": "clear"}, "labels": labels}


def write(root, frames, file="det_20/det_val.json", split="val"):
    images = root / "images" / "100k" / split
    images.mkdir(parents=True, exist_ok=True)
    for item in frames:
        Image.new("RGB", (64, 36)).save(images / item["name"])
    path = root / "labels" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(frames))
    return path


FRAMES = [
    frame("b", [label("pedestrian", (1, 2, 11, 22)), label("train", (0, 0, 30, 30)), label("rider", (5, 5, 15, 25))]),
    frame("night", [label("car", (1, 1, 9, 9))], "night"),
    frame(
        "a", [label("traffic light", (1, 1, 3, 5)), label("bicycle", (60, 30, 70, 40)), label("car", (2, 2, 2.5, 9))]
    ),
]


@pytest.fixture
def root(tmp_path):
    write(tmp_path, FRAMES)
    return tmp_path


def named(record):
    return [(BDD100K_CLASSES[a["category_id"]], a["bbox"], a["iscrowd"]) for a in record["annotations"]]


def test_the_classes_are_those_of_cityscapes_without_trains():
    assert tuple(name for name in CITYSCAPES_CLASSES if name != "train") == BDD100K_CLASSES
    assert len(BDD100K_CLASSES) == 7


def test_reads_the_daytime_images_and_the_shared_classes(root):
    dataset = load_bdd100k_daytime(root, "val")
    assert (dataset.name, dataset.classes) == ("bdd100k_daytime_val", BDD100K_CLASSES)
    first, second = dataset.records
    assert [record["image_id"] for record in dataset.records] == ["a", "b"]
    assert (first["height"], first["width"]) == (36, 64)
    assert named(first) == [("bicycle", [60.0, 30.0, 4.0, 6.0], 0)]  # clipped; the thin car is dropped
    assert named(second) == [("person", [1.0, 2.0, 10.0, 20.0], 0), ("rider", [5.0, 5.0, 10.0, 20.0], 0)]


def test_the_older_labels_give_the_same(root, tmp_path):
    old = {"pedestrian": "person", "bicycle": "bike", "motorcycle": "motor"}
    frames = json.loads(json.dumps(FRAMES))
    for item in frames:
        for annotation in item["labels"]:
            annotation["category"] = old.get(annotation["category"], annotation["category"])
        item["labels"].append({"category": "lane", "attributes": {}, "poly2d": [{"vertices": [[1, 2], [3, 4]]}]})
    older = tmp_path / "older"
    write(older, frames, "bdd100k_labels_images_val.json")
    expected, found = (load_bdd100k_daytime(folder, "val") for folder in (root, older))
    assert [named(record) for record in found.records] == [named(record) for record in expected.records]


def test_all_seven_classes_are_mapped_in_both_vocabularies(tmp_path):
    for year, words in {
        "2018": ("person", "rider", "car", "truck", "bus", "motor", "bike"),
        "2020": ("pedestrian", "rider", "car", "truck", "bus", "motorcycle", "bicycle"),
    }.items():
        write(tmp_path / year, [frame("a", [label(word, (1, 1, 9, 9)) for word in words])])
        (record,) = load_bdd100k_daytime(tmp_path / year, "val").records
        assert [a["category_id"] for a in record["annotations"]] == list(range(7))


def test_crowds_and_what_bdd100k_ignores_are_regions_to_ignore(tmp_path):
    labels = [
        label("other person", (1, 1, 9, 9)),
        label("other vehicle", (2, 1, 9, 9)),
        label("trailer", (3, 1, 9, 9)),
        label("car", (4, 1, 9, 9), crowd=True),
        label("car", (5, 1, 9, 9), crowd=False),
    ]
    write(tmp_path, [frame("a", labels)])
    dataset = load_bdd100k_daytime(tmp_path, "val")
    found = [(name, iscrowd) for name, _, iscrowd in named(dataset.records[0])]
    assert found == [("person", 1), ("car", 1), ("truck", 1), ("car", 1), ("car", 0)]
    assert dataset.num_boxes == 1


@pytest.mark.parametrize("labels", [None, []])
def test_an_image_without_objects_is_kept(tmp_path, labels):
    item = frame("a", labels)
    write(tmp_path, [item])
    assert load_bdd100k_daytime(tmp_path, "val").records[0]["annotations"] == []
    del item["labels"]
    write(tmp_path, [item])
    assert load_bdd100k_daytime(tmp_path, "val").records[0]["annotations"] == []


@pytest.mark.parametrize(("split", "expected"), [("train", 36728), ("val", 5258)])
def test_counts_against_the_published_number(tmp_path, caplog, split, expected):
    write(tmp_path, FRAMES, f"det_20/det_{split}.json", split)
    with caplog.at_level(logging.INFO):
        load_bdd100k_daytime(tmp_path, split)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"2 images of {expected} expected, 3 boxes and 0 regions to ignore (1 thinner" in record.message


def test_without_labels_the_images_are_the_same(root):
    labelled = load_bdd100k_daytime(root, "val").without_labels()
    assert load_bdd100k_daytime(root, "val", labels=False).records == labelled.records


def test_what_is_missing_is_named_with_its_archive(root):
    with pytest.raises(
        FileNotFoundError, match=r"det_train.json nor .*bdd100k_labels_images_train.json exists; unpack"
    ):
        load_bdd100k_daytime(root, "train")
    (root / "images" / "100k" / "val" / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"b.jpg does not exist; .*bdd100k_images_100k.zip"):
        load_bdd100k_daytime(root, "val")
    with pytest.raises(ValueError, match="split is 'test'"):
        load_bdd100k_daytime(root, "test")


@pytest.mark.parametrize("text", ["", "{}x", '{"name": 1}', '[{"name": "a.jpg"}]', "[1]", "3"])
def test_a_corrupt_label_file_is_named(root, text):
    (root / "labels" / "det_20" / "det_val.json").write_text(text)
    with pytest.raises(ValueError, match=r"det_val.json is not a readable label file of BDD100K"):
        load_bdd100k_daytime(root, "val")


@pytest.mark.parametrize(
    "labels", [[{"category": "car", "box2d": {"x1": 1}}], [label("car", (1, "x", 3, 4))], [{}], [3]]
)
def test_a_corrupt_label_is_named_with_its_frame(tmp_path, labels):
    write(tmp_path, [frame("a", labels)])
    with pytest.raises(ValueError, match=r"det_val.json: frame a.jpg is not a readable"):
        load_bdd100k_daytime(tmp_path, "val")


def test_any_wrong_value_in_the_labels_is_taken_or_named_in_one_line(tmp_path):
    frames = FRAMES[:2]
    path = write(tmp_path, frames)
    _, messages = refusals(path, frames, lambda: load_bdd100k_daytime(tmp_path, "val"))
    assert len(messages) > 100
    assert all("det_val.json" in message for message in messages)
