"""The labelled images of KITTI's object benchmark, read from the folders that its archives unpack to.

::

    ROOT/training/image_2/FRAME.png     data_object_image_2.zip
    ROOT/training/label_2/FRAME.txt     data_object_label_2.zip

Geiger et al., "Are we ready for autonomous driving? The KITTI vision benchmark suite", CVPR 2012. Adaptation to
Cityscapes is published on the class ``Car`` alone (vans are another class of KITTI), and it is all that is read.
"""

from __future__ import annotations

from pathlib import Path

from gh_downstream.detection.data.records import (
    Annotation,
    DetectionDataset,
    box_annotation,
    find_files,
    read_dataset,
    readable,
)

EXPECTED = 7481
"""Number of labelled images."""


def load_kitti(root: str | Path, *, labels: bool = True) -> DetectionDataset:
    """Read the labelled images of KITTI and their cars.

    Regions that KITTI labels ``DontCare`` become regions to ignore. The coordinates, which count from 0, are taken as
    the edges of a box, as KITTI's own evaluation does. Boxes thinner than a pixel are dropped.

    Args:
        root: Folder that holds ``training``.
        labels: ``False`` reads no annotation; ``label_2`` need not exist then.

    Returns:
        The data set with the one class ``car``, named ``kitti_car_train``; image ids are the names of the frames.

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
    return read_dataset("kitti_car_train", ("car",), paths, archive, boxes if labels else None, EXPECTED)
