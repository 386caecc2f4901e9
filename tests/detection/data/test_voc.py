"""Annotations in Pascal VOC's format: what becomes of them in COCO's, and which are refused."""

import json

import pytest
from PIL import Image

from gh_downstream.cli.main import run
from gh_downstream.detection.data import load_coco
from gh_downstream.detection.data.voc import convert_voc

OBJECT = """<object><name>{}</name>{}<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
</object>"""


def write(root, name, *objects, size=(60, 20), folder="."):
    """An image of ``size`` (width, height) and its annotation."""
    (root / "images" / folder).mkdir(parents=True, exist_ok=True)
    (root / "labels").mkdir(exist_ok=True)
    Image.new("RGB", size).save(root / "images" / folder / f"{name}.png")
    edges = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    # The file name in it is that of the machine that it was made on.
    text = f"<annotation><filename>/home/x.jpg</filename>{edges}{''.join(objects)}</annotation>"
    (root / "labels" / f"{name}.xml").write_text(text)


@pytest.fixture
def towns(tmp_path):
    light = OBJECT.format("traffic_light", "<difficult>1</difficult>", 50, 2, 70, 12)
    write(tmp_path, "Town01_1", OBJECT.format("vehicle", "<difficult>0</difficult>", 10, 5, 30, 15), light)
    write(tmp_path, "Town01_2", folder="more")
    write(tmp_path, "Town02_1", OBJECT.format("bike", "", 1, 1, 9, 9), OBJECT.format("bike", "", 5, 5, 5.5, 9))
    return tmp_path


def test_the_json_holds_what_the_annotations_say(towns, caplog):
    caplog.set_level("INFO")
    convert_voc(towns / "images", towns / "labels", towns / "all.json")
    assert "all: 3 images, 2 boxes and 1 regions to ignore (1 thinner than a pixel dropped)" in caplog.text
    dataset = load_coco(towns / "all.json", towns / "images")
    assert dataset.classes == ("bike", "traffic_light", "vehicle")
    assert [record["image_id"] for record in dataset.records] == ["Town01_1", "Town01_2", "Town02_1"]
    first, second, third = (record["annotations"] for record in dataset.records)
    assert first == [
        {"bbox": [10.0, 5.0, 20.0, 10.0], "category_id": 2, "area": 200.0, "iscrowd": 0},
        {"bbox": [50.0, 2.0, 10.0, 10.0], "category_id": 1, "area": 100.0, "iscrowd": 1},  # clipped
    ]
    assert second == []
    assert [box["bbox"] for box in third] == [[1.0, 1.0, 8.0, 8.0]]
    names = [image["file_name"] for image in json.loads((towns / "all.json").read_text())["images"]]
    assert names == ["Town01_1.png", "more/Town01_2.png", "Town02_1.png"]


def test_a_part_has_the_classes_of_the_whole(towns):
    words = ["data", "voc", *(str(towns / name) for name in ("images", "labels", "town.json")), "--only", "Town02_*"]
    assert run(words) == 0
    part = load_coco(towns / "town.json", towns / "images")
    assert part.classes == ("bike", "traffic_light", "vehicle")
    assert [record["image_id"] for record in part.records] == ["Town02_1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "images" / "Town02_1.png").unlink(), "Town02_1.xml has 0 images in"),
        (lambda root: write(root, "Town01_1", folder="more"), "Town01_1.xml has 2 images in"),
        (lambda root: Image.new("RGB", (9, 9)).save(root / "images" / "Town02_1.png"), r"of \(20, 60\) pixels"),
        (lambda root: (root / "labels" / "Town02_1.xml").write_text("<annotation>"), "Town02_1.xml is not a readable"),
        (
            lambda root: write(root, "Town02_1", "<object><name>bike</name></object>"),
            "Town02_1.xml is not a readable annotation in the format of Pascal VOC .*no bndbox/xmin in object",
        ),
        (lambda root: [path.unlink() for path in (root / "labels").iterdir()], r"labels holds no \*\.xml"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(towns, change, message):
    change(towns)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        convert_voc(towns / "images", towns / "labels", towns / "all.json")
    assert not (towns / "all.json").exists()
