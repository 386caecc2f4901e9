"""The cars of KITTI and of Sim10k, read from the folders that their archives unpack to.

::

    ROOT/training/image_2/FRAME.png         data_object_image_2.zip
    ROOT/training/label_2/FRAME.txt         data_object_label_2.zip

    ROOT/VOC2012/JPEGImages/FRAME.jpg       repro_10k_images.tgz
    ROOT/VOC2012/Annotations/FRAME.xml      repro_10k_annotations.tgz

KITTI is of Geiger et al., "Are we ready for autonomous driving? The KITTI vision benchmark suite", CVPR 2012; Sim10k,
streets rendered in a game, of Johnson-Roberson et al., "Driving in the Matrix", ICRA 2017. Adaptation from either to
Cityscapes is published on cars alone (vans are another class of KITTI), and they are all that is read.
"""

from pathlib import Path

from gh_downstream.detection.data.records import (
    Annotation,
    DetectionDataset,
    box_annotation,
    find_files,
    read_dataset,
    readable,
)
from gh_downstream.detection.data.voc import voc_boxes


def load_kitti(root: str | Path, *, labels: bool = True) -> DetectionDataset:
    """Read the labelled images of KITTI and their cars, as the data set ``kitti_car_train`` of the one class ``car``.

    Image ids are the names of the frames. Regions that KITTI labels ``DontCare`` become regions to ignore. The
    coordinates, which count from 0, are taken as the edges of a box, as KITTI's own evaluation does. Boxes thinner than
    a pixel are dropped.

    Args:
        root: Folder that holds ``training``.
        labels: ``False`` reads no annotation; ``label_2`` need not exist then.

    Raises:
        FileNotFoundError: If the images, or the labels of one of them, are missing.
        ValueError: If a file is corrupt.
    """
    images, annotations = (Path(root) / "training" / folder for folder in ("image_2", "label_2"))
    unpack = f"unpack {{}} (www.cvlibs.net/datasets/kitti) in {root}"
    archive = unpack.format("data_object_image_2.zip")

    def boxes(image: Path, size: tuple[int, int]) -> list[Annotation | None]:
        # A line: type, truncation, occlusion, angle, four corners, seven more.
        path = annotations / f"{image.stem}.txt"
        with readable(path, "label file of KITTI", unpack.format("data_object_label_2.zip")):
            rows = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
            if any(len(row) < 15 for row in rows):
                raise ValueError("a line has fewer than 15 columns")
            wanted = [row for row in rows if row[0] in ("Car", "DontCare")]
            return [box_annotation([*map(float, row[4:8])], size, 0, row[0] == "DontCare") for row in wanted]

    paths = find_files(images, "*.png", archive)
    return read_dataset("kitti_car_train", ("car",), paths, archive, boxes if labels else None, 7481)


def load_sim10k(root: str | Path, *, labels: bool = True) -> DetectionDataset:
    """Read the images of Sim10k and their cars, as the data set ``sim10k_car_train`` of the one class ``car``.

    Image ids are the names of the frames. The coordinates are taken as they are, as edges that count from 0, and not
    from 1 as in Pascal VOC, whose format the files have. Boxes thinner than a pixel are dropped.

    Args:
        root: Folder that holds ``VOC2012``.
        labels: ``False`` reads no annotation; ``Annotations`` need not exist then.

    Raises:
        FileNotFoundError, ValueError: As :func:`load_kitti`, or if an annotation does not fit its image.
    """
    images, annotations = (Path(root) / "VOC2012" / folder for folder in ("JPEGImages", "Annotations"))
    unpack = f"unpack {{}} (fcav.engin.umich.edu/projects/driving-in-the-matrix) in {root}"
    archive = unpack.format("repro_10k_images.tgz")

    def boxes(image: Path, size: tuple[int, int]) -> list[Annotation | None]:
        return voc_boxes(annotations / f"{image.stem}.xml", size, ("car",), unpack.format("repro_10k_annotations.tgz"))

    paths = find_files(images, "*.jpg", archive)
    return read_dataset("sim10k_car_train", ("car",), paths, archive, boxes if labels else None, 10000)
