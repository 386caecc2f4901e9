import logging
from xml.etree import ElementTree

import pytest
from PIL import Image

from gh_downstream.detection.data import load_sim10k


def write_frame(root, name, objects, size=(40, 30), listed=None):
    """An image of ``size`` (width, height) and its annotation, as the archives of Sim10k unpack."""
    images, annotations = (root / "VOC2012" / folder for folder in ("JPEGImages", "Annotations"))
    images.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(exist_ok=True)
    Image.new("RGB", size).save(images / f"{name}.jpg")
    tree = ElementTree.Element("annotation")
    ElementTree.SubElement(tree, "filename").text = f"{name}.jpg"
    listed_size = ElementTree.SubElement(tree, "size")
    for tag, value in zip(("width", "height"), listed or size, strict=True):
        ElementTree.SubElement(listed_size, tag).text = str(value)
    for label, corners in objects:
        item = ElementTree.SubElement(tree, "object")
        ElementTree.SubElement(item, "name").text = label
        box = ElementTree.SubElement(item, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            ElementTree.SubElement(box, tag).text = str(value)
    ElementTree.ElementTree(tree).write(annotations / f"{name}.xml")


@pytest.fixture
def root(tmp_path):
    write_frame(tmp_path, "3384827", [("car", (0, 2, 10, 12)), ("person", (3, 3, 9, 9)), ("car", (20, 5, 45, 25))])
    write_frame(tmp_path, "200", [("motorbike", (1, 1, 8, 8))])
    return tmp_path


def test_reads_every_image_and_its_cars(root):
    dataset = load_sim10k(root)
    assert (dataset.name, dataset.classes, dataset.fog_density) == ("sim10k_car_train", ("car",), None)
    empty, first = dataset.records
    assert (empty["image_id"], empty["annotations"]) == ("200", [])
    assert (first["image_id"], first["height"], first["width"]) == ("3384827", 30, 40)
    assert first["file_name"] == str(root / "VOC2012" / "JPEGImages" / "3384827.jpg")
    assert first["annotations"] == [
        {"bbox": [0.0, 2.0, 10.0, 10.0], "category_id": 0, "area": 100.0, "iscrowd": 0},
        {"bbox": [20.0, 5.0, 20.0, 20.0], "category_id": 0, "area": 400.0, "iscrowd": 0},  # clipped
    ]


def test_counts_against_the_published_number(root, caplog):
    write_frame(root, "7", [("car", (5, 5, 5, 9)), ("car", (39.5, 5, 60, 9))])
    with caplog.at_level(logging.INFO):
        load_sim10k(root)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "3 images of 10000 expected, 2 boxes" in record.message
    assert "2 thinner than a pixel dropped" in record.message


def test_without_labels_no_annotation_has_to_be_there(root):
    labelled = load_sim10k(root)
    for path in (root / "VOC2012" / "Annotations").iterdir():
        path.unlink()
    assert load_sim10k(root, labels=False).records == labelled.without_labels().records


def test_what_is_missing_is_named_with_its_archive(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"JPEGImages does not exist; unpack repro_10k_images.tgz"):
        load_sim10k(tmp_path / "nowhere")
    (root / "VOC2012" / "Annotations" / "200.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"200.xml does not exist; unpack repro_10k_annotations.tgz"):
        load_sim10k(root)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<annotation>",
        "<annotation/>",
        "<annotation><size><width>40</width><height>30</height></size><object><name>car</name></object></annotation>",
        "<annotation><size><width>40</width><height>30</height></size><object><name>car</name><bndbox><xmin>nan</xmin>"
        "<ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>",
    ],
)
def test_a_corrupt_annotation_is_named(root, text):
    (root / "VOC2012" / "Annotations" / "200.xml").write_text(text)
    with pytest.raises(ValueError, match=r"200.xml is not a readable annotation of Sim10k \(.+\); unpack"):
        load_sim10k(root)


def test_an_annotation_of_another_size_and_a_corrupt_image_are_named(root):
    write_frame(root, "200", [], listed=(80, 60))
    with pytest.raises(ValueError, match=r"200.xml .*\(60, 80\) pixels .*its image of \(30, 40\)"):
        load_sim10k(root)
    (root / "VOC2012" / "JPEGImages" / "200.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"200.jpg is not a readable image"):
        load_sim10k(root)
