import logging

import pytest
from PIL import Image

from gh_downstream.detection.data import load_kitti

REST = "1.51 1.85 4.93 2.91 1.49 0.86 -1.57"


def write_frame(root, name, objects, size=(60, 20)):
    """An image of ``size`` (width, height) and its labels, as the archives of KITTI unpack."""
    images, labels = (root / "training" / folder for folder in ("image_2", "label_2"))
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(exist_ok=True)
    Image.new("RGB", size).save(images / f"{name}.png")
    lines = [f"{label} 0.00 0 -2.76 {' '.join(map(str, corners))} {REST}" for label, corners in objects]
    (labels / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def root(tmp_path):
    objects = [("Car", (10.25, 5.5, 30.0, 15.5)), ("Van", (1, 1, 9, 9)), ("DontCare", (40, 2, 50, 8))]
    write_frame(tmp_path, "000002", [*objects, ("Car", (50.0, 10.0, 60.0, 20.0))])
    write_frame(tmp_path, "000001", [("Pedestrian", (3, 3, 9, 19))])
    return tmp_path


def test_reads_every_image_its_cars_and_regions_to_ignore(root):
    dataset = load_kitti(root)
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


def test_counts_against_the_published_number(root, caplog):
    write_frame(root, "000003", [("Car", (5, 5, 5.5, 9))])
    with caplog.at_level(logging.INFO):
        load_kitti(root)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "3 images of 7481 expected, 2 boxes and 1 regions to ignore (1 thinner" in record.message


def test_without_labels_no_label_file_has_to_be_there(root):
    labelled = load_kitti(root)
    for path in (root / "training" / "label_2").iterdir():
        path.unlink()
    assert load_kitti(root, labels=False).records == labelled.without_labels().records


def test_what_is_missing_is_named_with_its_archive(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image_2 does not exist; unpack data_object_image_2.zip"):
        load_kitti(tmp_path / "nowhere")
    (root / "training" / "label_2" / "000001.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"000001.txt does not exist; unpack data_object_label_2.zip"):
        load_kitti(root)
    (root / "training" / "label_2").rename(root / "moved")
    with pytest.raises(FileNotFoundError, match=r"label_2"):
        load_kitti(root)


@pytest.mark.parametrize("text", ["Car 0.0 0", f"Car 0.0 0 -2 1 2 x 4 {REST}", f"Car 0.0 0 -2 1 2 inf 4 {REST}", "é"])
def test_a_corrupt_label_file_is_named(root, text):
    (root / "training" / "label_2" / "000001.txt").write_text(text)
    with pytest.raises(ValueError, match=r"000001.txt is not a readable label file of KITTI \(.+\); unpack"):
        load_kitti(root)


def test_a_corrupt_image_is_named(root):
    path = root / "training" / "image_2" / "000002.png"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"000002.png is not a readable image \(the file is cut off\)"):
        load_kitti(root)
