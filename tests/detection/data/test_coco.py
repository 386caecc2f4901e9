import json
import logging

import numpy as np
import pytest
from PIL import Image

from gh_downstream.data.images import image_size
from gh_downstream.detection.data import load_coco


@pytest.fixture
def content():
    """Two images of 40 x 30 pixels, categories out of order."""
    return {
        "images": [
            {"id": 8, "file_name": "town/one.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "two.jpg"},
        ],
        "categories": [{"id": 7, "name": "car"}, {"id": 2, "name": "person"}],
        "annotations": [
            {"id": 11, "image_id": 8, "category_id": 7, "bbox": [5, 6.5, 10, 20], "area": 150, "iscrowd": 0},
            {"id": 12, "image_id": 8, "category_id": 2, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        ],
    }


@pytest.fixture
def load(tmp_path, content):
    folder = tmp_path / "images"
    (folder / "town").mkdir(parents=True)
    pixels = np.zeros((30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "town" / "one.png")
    Image.fromarray(pixels).save(folder / "two.jpg")
    path = tmp_path / "labels.json"

    def load_content(**options):
        path.write_text(json.dumps(content))
        return load_coco(path, folder, **options)

    return load_content


def annotation(content, bbox, **more):
    item = {"id": 99, "image_id": 3, "category_id": 7, "bbox": bbox, **more}
    content["annotations"].append(item)
    return item


def test_reads_every_image_and_box(load):
    dataset = load()
    assert dataset.name == "labels"
    assert dataset.classes == ("person", "car")
    assert dataset.fog_density is None
    first, second = dataset.records
    assert (first["image_id"], first["height"], first["width"]) == (8, 30, 40)
    assert first["annotations"] == [
        {"bbox": [5.0, 6.5, 10.0, 20.0], "category_id": 1, "area": 150.0, "iscrowd": 0},
        {"bbox": [0.0, 0.0, 40.0, 30.0], "category_id": 0, "area": 1200.0, "iscrowd": 1},
    ]
    assert (second["image_id"], second["height"], second["width"]) == (3, 30, 40)
    assert second["annotations"] == []
    assert all(image_size_of(record) == (30, 40) for record in dataset.records)


def image_size_of(record):
    with Image.open(record["file_name"]) as image:
        return image.height, image.width


def test_the_order_of_the_classes_can_be_given(load):
    dataset = load(name="town", classes=["car", "person"])
    assert dataset.name == "town"
    assert dataset.classes == ("car", "person")
    assert [a["category_id"] for a in dataset.records[0]["annotations"]] == [0, 1]


@pytest.mark.parametrize("classes", [["car"], ["car", "person", "bus"], ["car", "car", "person"], ["cars", "person"]])
def test_classes_that_are_not_the_categories_are_refused_with_both(load, classes):
    with pytest.raises(ValueError, match=r"labels.json are \['person', 'car'\]") as caught:
        load(classes=classes)
    assert str(classes) in str(caught.value)


def test_what_it_writes_it_reads(load, tmp_path):
    dataset = load()
    path = tmp_path / "again.json"
    path.write_text(json.dumps(dataset.to_coco()))
    again = load_coco(path, "/")
    assert again.records == dataset.records
    assert again.classes == dataset.classes


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([-3, -4, 10, 10], [0.0, 0.0, 7.0, 6.0]),
        ([35, 25, 10, 10.5], [35.0, 25.0, 5.0, 5.0]),
        ([-1, 3, 100, 2], [0.0, 3.0, 40.0, 2.0]),
    ],
)
def test_a_box_that_sticks_out_is_clipped(load, content, caplog, bbox, expected):
    annotation(content, bbox)
    with caplog.at_level(logging.INFO):
        (found,) = load().records[1]["annotations"]
    assert found["bbox"] == expected
    assert found["area"] == expected[2] * expected[3]
    assert "1 clipped" in caplog.text


@pytest.mark.parametrize("bbox", [[0.1, 0.2, 0.9, 5], [5, 5, 5, 0], [39.5, 3, 4, 4], [-9.5, 3, 10, 10], [50, 50, 0, 0]])
def test_a_box_thinner_than_a_pixel_inside_its_image_is_dropped(load, content, caplog, bbox):
    annotation(content, bbox)
    with caplog.at_level(logging.INFO):
        dataset = load()
    assert dataset.records[1]["annotations"] == []
    assert len(dataset) == 2
    assert "1 thinner than a pixel dropped" in caplog.text


def test_a_fractional_box_inside_is_kept_as_it_is(load, content, caplog):
    annotation(content, [0.1, 0.2, 1.7, 2.3])
    with caplog.at_level(logging.INFO):
        (found,) = load().records[1]["annotations"]
    assert found["bbox"] == [0.1, 0.2, 1.7, 2.3]
    assert "0 clipped" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": [40, 5, 5, 5]},
        {"bbox": [5, -9, 5, 5]},
        {"bbox": [float("nan"), 5, 5, 5]},
        {"bbox": [5, 5, float("inf"), 5]},
        {"bbox": [5, 5, -5, 5]},
        {"bbox": [5, 5, 5]},
        {"bbox": None},
        {"area": float("nan")},
        {"image_id": 4},
        {"category_id": 1},
    ],
)
def test_a_wrong_annotation_is_named_with_its_file(load, content, change):
    annotation(content, [5, 5, 5, 5]).update(change)
    with pytest.raises(ValueError, match=r"labels.json: annotation 99\b"):
        load()


def test_a_missing_or_corrupt_image_is_named(load, content, tmp_path):
    path = tmp_path / "images" / "town" / "one.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"one.png is not a readable image \(the file is cut off\).*labels.json"):
        load()
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"one.png is not a readable image"):
        load()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"one.png does not exist; .*labels.json lists it"):
        load()


def test_an_image_of_another_size_is_refused(load, content):
    content["images"][0]["width"] = 80
    with pytest.raises(ValueError, match=r"one.png is of \(30, 40\) pixels .*labels.json says \(30, 80\)"):
        load()


def test_two_images_with_one_id_are_refused(load, content):
    content["images"][1]["id"] = 8
    with pytest.raises(ValueError, match="two images have the id 8"):
        load()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"images": []}', '{"images": [], "annotations": [], "categories": 1}']
)
def test_a_file_that_is_not_coco_is_refused(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json"):
        load_coco(path, tmp_path)


def test_an_entry_without_its_fields_is_named(load, content):
    del content["annotations"][1]["bbox"]
    with pytest.raises(ValueError, match=r"annotations\[1\] lacks one of \['bbox', 'category_id', 'image_id'\]"):
        load()


def test_a_missing_json_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.json does not exist"):
        load_coco(tmp_path / "nothing.json", tmp_path)


def test_image_size_reads_height_first(tmp_path):
    Image.new("L", (7, 3)).save(tmp_path / "a.png")
    assert image_size(tmp_path / "a.png") == (3, 7)
