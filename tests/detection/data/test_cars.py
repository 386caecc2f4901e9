import logging
from xml.etree import ElementTree

import pytest
from PIL import Image

from gh_downstream.detection.data import load_kitti, load_sim10k

REST = "1.51 1.85 4.93 2.91 1.49 0.86 -1.57"


def write_kitti(root, name, objects, size=(60, 20)):
    """An image of ``size`` (width, height) and its labels, as the archives of KITTI unpack."""
    images, labels = (root / "training" / folder for folder in ("image_2", "label_2"))
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(exist_ok=True)
    Image.new("RGB", size).save(images / f"{name}.png")
    lines = [f"{label} 0.00 0 -2.76 {' '.join(map(str, corners))} {REST}" for label, corners in objects]
    (labels / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def kitti(tmp_path):
    objects = [("Car", (10.25, 5.5, 30.0, 15.5)), ("Van", (1, 1, 9, 9)), ("DontCare", (40, 2, 50, 8))]
    write_kitti(tmp_path, "000002", [*objects, ("Car", (50.0, 10.0, 60.0, 20.0))])
    write_kitti(tmp_path, "000001", [("Pedestrian", (3, 3, 9, 19))])
    return tmp_path


def test_reads_every_image_its_cars_and_regions_to_ignore_of_kitti(kitti):
    dataset = load_kitti(kitti)
    assert (dataset.name, dataset.classes, dataset.fog_density) == ("kitti_car_train", ("car",), None)
    empty, first = dataset.records
    assert (empty["image_id"], empty["annotations"]) == ("000001", [])
    assert (first["image_id"], first["height"], first["width"]) == ("000002", 20, 60)
    assert first["annotations"] == [
        {"bbox": [10.25, 5.5, 19.75, 10.0], "category_id": 0, "area": 197.5, "iscrowd": 0},
        {"bbox": [40.0, 2.0, 10.0, 6.0], "category_id": 0, "area": 60.0, "iscrowd": 1},
        {"bbox": [50.0, 10.0, 10.0, 10.0], "category_id": 0, "area": 100.0, "iscrowd": 0},
    ]
    assert dataset.num_boxes == 2


def test_counts_against_the_published_number_of_kitti(kitti, caplog):
    write_kitti(kitti, "000003", [("Car", (5, 5, 5.5, 9))])
    with caplog.at_level(logging.INFO):
        load_kitti(kitti)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "3 images of 7481 expected, 2 boxes and 1 regions to ignore (1 thinner" in record.message


def test_without_labels_no_label_file_has_to_be_there_of_kitti(kitti):
    labelled = load_kitti(kitti)
    for path in (kitti / "training" / "label_2").iterdir():
        path.unlink()
    assert load_kitti(kitti, labels=False).records == labelled.without_labels().records


def test_what_is_missing_is_named_with_its_archive_of_kitti(kitti, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image_2 does not exist; unpack data_object_image_2.zip"):
        load_kitti(tmp_path / "nowhere")
    (kitti / "training" / "label_2" / "000001.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"000001.txt does not exist; unpack data_object_label_2.zip"):
        load_kitti(kitti)
    (kitti / "training" / "label_2").rename(kitti / "moved")
    with pytest.raises(FileNotFoundError, match=r"label_2"):
        load_kitti(kitti)


@pytest.mark.parametrize("text", ["Car 0.0 0", f"Car 0.0 0 -2 1 2 x 4 {REST}", f"Car 0.0 0 -2 1 2 inf 4 {REST}", "é"])
def test_a_corrupt_label_file_is_named_of_kitti(kitti, text):
    (kitti / "training" / "label_2" / "000001.txt").write_text(text)
    with pytest.raises(ValueError, match=r"000001.txt is not a readable label file of KITTI \(.+\); unpack"):
        load_kitti(kitti)


def test_a_corrupt_image_is_named_of_kitti(kitti):
    path = kitti / "training" / "image_2" / "000002.png"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"000002.png is not a readable image \(the file is cut off\)"):
        load_kitti(kitti)


def write_sim10k(root, name, objects, size=(40, 30), listed=None):
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
def sim10k(tmp_path):
    write_sim10k(tmp_path, "3384827", [("car", (0, 2, 10, 12)), ("person", (3, 3, 9, 9)), ("car", (20, 5, 45, 25))])
    write_sim10k(tmp_path, "200", [("motorbike", (1, 1, 8, 8))])
    return tmp_path


def test_reads_every_image_and_its_cars_of_sim10k(sim10k):
    dataset = load_sim10k(sim10k)
    assert (dataset.name, dataset.classes, dataset.fog_density) == ("sim10k_car_train", ("car",), None)
    empty, first = dataset.records
    assert (empty["image_id"], empty["annotations"]) == ("200", [])
    assert (first["image_id"], first["height"], first["width"]) == ("3384827", 30, 40)
    assert first["file_name"] == str(sim10k / "VOC2012" / "JPEGImages" / "3384827.jpg")
    assert first["annotations"] == [
        {"bbox": [0.0, 2.0, 10.0, 10.0], "category_id": 0, "area": 100.0, "iscrowd": 0},
        {"bbox": [20.0, 5.0, 20.0, 20.0], "category_id": 0, "area": 400.0, "iscrowd": 0},  # clipped
    ]


def test_counts_against_the_published_number_of_sim10k(sim10k, caplog):
    write_sim10k(sim10k, "7", [("car", (5, 5, 5, 9)), ("car", (39.5, 5, 60, 9))])
    with caplog.at_level(logging.INFO):
        load_sim10k(sim10k)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "3 images of 10000 expected, 2 boxes" in record.message
    assert "2 thinner than a pixel dropped" in record.message


def test_without_labels_no_annotation_has_to_be_there_of_sim10k(sim10k):
    labelled = load_sim10k(sim10k)
    for path in (sim10k / "VOC2012" / "Annotations").iterdir():
        path.unlink()
    assert load_sim10k(sim10k, labels=False).records == labelled.without_labels().records


def test_what_is_missing_is_named_with_its_archive_of_sim10k(sim10k, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"JPEGImages does not exist; unpack repro_10k_images.tgz"):
        load_sim10k(tmp_path / "nowhere")
    (sim10k / "VOC2012" / "Annotations" / "200.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"200.xml does not exist; unpack repro_10k_annotations.tgz"):
        load_sim10k(sim10k)


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
def test_a_corrupt_annotation_is_named_of_sim10k(sim10k, text):
    (sim10k / "VOC2012" / "Annotations" / "200.xml").write_text(text)
    with pytest.raises(ValueError, match=r"200.xml is not a readable annotation in .* Pascal VOC \(.+\); unpack"):
        load_sim10k(sim10k)


def test_an_annotation_of_another_size_and_a_corrupt_image_are_named_of_sim10k(sim10k):
    write_sim10k(sim10k, "200", [], listed=(80, 60))
    with pytest.raises(ValueError, match=r"200.xml .*\(60, 80\) pixels .*its image of \(30, 40\)"):
        load_sim10k(sim10k)
    (sim10k / "VOC2012" / "JPEGImages" / "200.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"200.jpg is not a readable image"):
        load_sim10k(sim10k)
