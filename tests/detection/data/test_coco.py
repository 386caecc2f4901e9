import json
import logging
import math
import os

import numpy as np
import pytest
from PIL import Image

from gh_downstream.data.images import image_size
from gh_downstream.detection.data import load_coco
from gh_downstream.detection.data.coco import load_images
from tests.detection.data.wrong_values import changed, refusals


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


def test_some_of_the_categories_can_be_kept_under_names_of_ones_own(load, caplog):
    with caplog.at_level(logging.INFO):
        dataset = load(classes={"vehicle": ["truck", "car"]})
    assert dataset.classes == ("vehicle",)
    assert [a["category_id"] for record in dataset.records for a in record["annotations"]] == [0]
    assert "0 of other categories left out" in caplog.text  # what is left out is a region to ignore
    assert load(classes=["car"]).num_boxes == 1
    assert load(classes=["person"]).num_boxes == 0


@pytest.mark.parametrize("classes", [["car", "person", "bus"], ["cars", "person"], {"bus": ["coach"]}])
def test_a_class_without_a_category_is_refused_with_those_that_there_are(load, classes):
    with pytest.raises(ValueError, match=r"labels.json: .*has no classes \['(bus|cars)'\]; it has person, car"):
        load(classes=classes)
    with pytest.raises(ValueError, match="twice"):
        load(classes=["car", "car"])


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


# ---- every file that is not what it should be is one line


@pytest.mark.parametrize("labels", [True, False])
def test_any_wrong_value_at_any_place_is_taken_or_named_in_one_line(load, content, tmp_path, labels):
    load()
    path = tmp_path / "labels.json"
    loaded, messages = refusals(path, content, lambda: load_coco(path, tmp_path / "images", labels=labels))
    assert len(messages) > 100
    assert all("labels.json" in message for message in messages)
    for dataset in loaded:
        for record in dataset.records:
            assert record["height"] == 30
            for item in record["annotations"]:
                assert all(np.isfinite([*item["bbox"], item["area"]]))
                assert item["iscrowd"] in (0, 1)
        json.dumps(dataset.to_coco(), allow_nan=False)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("images", 1, "file_name"), 5, r"images\[1\]: file_name is 5, expected a text"),
        (("images", 1, "id"), [3], r"images\[1\]: id is \[3\]"),
        (("images", 1, "id"), {"a": 1}, r"images\[1\]: id is \{'a': 1\}"),
        (("images", 1, "id"), "3", r"images\[1\]: id is '3'.* all alike"),
        (("categories", 1, "id"), "2", r"categories\[1\]: id is '2'.* all alike"),
        (("images", 1, "id"), 3.5, r"images\[1\]: id is 3\.5"),
        (("annotations", 0, "category_id"), 7.5, r"annotation 11: category_id is 7\.5, which the file does not list"),
        (("annotations", 0, "image_id"), math.nan, r"annotation 11: image_id is nan, which the file does not list"),
        (("categories", 1, "name"), "car", r"two categories are named 'car'"),
        (("categories", 1, "name"), "\x1b[2J", r"categories\[1\]: name '\\x1b\[2J' cannot be printed"),
        (("images", 0, "width"), "40", r"images\[0\]: width has '40', expected a finite number"),
        (("annotations", 0, "area"), "150", r"annotation 11: area has '150', expected a finite number"),
        (("annotations", 0, "area"), -1, r"annotation 11: area has -1, expected a finite number of at least 0"),
        (("annotations", 0, "iscrowd"), "no", r"annotation 11: iscrowd is 'no', expected 0 or 1"),
        (("annotations", 0, "bbox"), {"x": 1}, r"annotation 11: bbox \{'x': 1\} is not \[x, y, width, height\]"),
        (("annotations", 0, "bbox", 2), 10**400, r"annotation 11: bbox has 1000.*, expected a finite number"),
        (("images",), [], r"lists no image"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(load, content, tmp_path, place, value, message):
    content.update(changed(content, place, value))
    with pytest.raises(ValueError, match=rf"labels.json:? .*{message}|labels.json: {message}"):
        load()


def test_ids_that_a_table_wrote_as_fractions_are_whole_numbers(load, content):
    expected = load()
    for key, fields in {
        "images": ["id"],
        "categories": ["id"],
        "annotations": ["id", "image_id", "category_id"],
    }.items():
        for item in content[key]:
            item.update({field: float(item[field]) for field in fields})
    found = load()
    assert found == expected
    assert [type(record["image_id"]) for record in found.records] == [int, int]


@pytest.mark.parametrize("field", ["area", "iscrowd"])
def test_null_counts_as_not_given(load, content, field):
    content["annotations"][0][field] = content["images"][0]["height"] = None
    found = load().records[0]["annotations"][0]
    assert (found["area"], found["iscrowd"]) == (200.0 if field == "area" else 150.0, 0)


def test_a_json_that_is_nested_too_deeply_is_named(tmp_path):
    (tmp_path / "deep.json").write_text('{"images": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ValueError, match=r"deep.json is not a readable JSON file \(nested too deeply\)"):
        load_coco(tmp_path / "deep.json", tmp_path)


def test_a_mark_of_utf_8_is_passed_over_and_another_encoding_named_in_a_short_line(load, content, tmp_path):
    dataset, path = load(), tmp_path / "labels.json"
    path.write_bytes(json.dumps(content).encode("utf-8-sig"))
    assert load_coco(path, tmp_path / "images") == dataset
    path.write_bytes(json.dumps(content).encode("utf-16"))
    with pytest.raises(ValueError, match=r"labels\.json is not a readable JSON file \(not UTF-8: ") as refused:
        load_coco(path, tmp_path / "images")
    assert len(str(refused.value)) < len(str(path)) + 200


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match=r"pipe.json is not a readable JSON file .*not a regular file"):
        load_coco(tmp_path / "pipe.json", tmp_path)


def test_an_image_outside_of_the_folder_is_taken_where_the_user_says_so_alone(load, content, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "other.png")
    for name in ("../other.png", str(tmp_path / "other.png")):
        content["images"][1]["file_name"] = name
        with pytest.raises(ValueError, match=r"images\[1\]: the image .* is not in .*images; .*outside_root=true"):
            load()
        assert len(load(outside_root=True)) == 2


def test_the_size_is_that_of_the_upright_image(load, content, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "town" / "one.png", exif=exif)
    with pytest.raises(ValueError, match=r"one.png is of \(40, 30\) .*set upright by its EXIF.*says \(30, 40\)"):
        load()
    content["images"][0].update(height=40, width=30)
    assert load().records[0]["height"] == 40


# ---- targets


def test_a_target_needs_images_alone(load, content):
    del content["annotations"], content["categories"]
    dataset = load(labels=False)
    assert (len(dataset), dataset.classes) == (2, ())
    with pytest.raises(ValueError, match="has no list 'annotations'"):
        load()


def test_a_folder_of_images_is_a_data_set_without_labels(load, tmp_path):
    load()
    dataset = load_images(tmp_path / "images")
    assert [record["image_id"] for record in dataset.records] == ["town/one.png", "two.jpg"]
    assert all((record["height"], record["width"]) == (30, 40) for record in dataset.records)
    assert (dataset.num_boxes, dataset.classes) == (0, ())
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        load_images(tmp_path / "empty")
