"""The labelled images of KITTI's object benchmark, read from the folders that its archives unpack to.

::

    ROOT/training/image_2/FRAME.png     data_object_image_2.zip
    ROOT/training/label_2/FRAME.txt     data_object_label_2.zip

Geiger et al., "Are we ready for autonomous driving? The KITTI vision benchmark suite", CVPR 2012. Adaptation to
Cityscapes is published on the class ``Car`` alone (vans are another class of KITTI), and it is all that is read.
"""

from __future__ import annotations

from pathlib import Path

from gh_downstream.detection.data.images import image_size
from gh_downstream.detection.data.records import (
    Annotation,
    DetectionDataset,
    Record,
    box_annotation,
    find_files,
    log_counts,
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
    remedy = "unpack {} (www.cvlibs.net/datasets/kitti) in " + str(root)
    records = []
    dropped = 0
    for path in find_files(images, "*.png", remedy.format("data_object_image_2.zip")):
        height, width = image_size(path, remedy.format("data_object_image_2.zip"))
        boxes: list[Annotation | None] = []
        if labels:
            source = annotations / f"{path.stem}.txt"
            boxes = _boxes(source, (height, width), remedy.format("data_object_label_2.zip"))
        kept = [box for box in boxes if box is not None]
        dropped += len(boxes) - len(kept)
        records.append(Record(file_name=str(path), image_id=path.stem, height=height, width=width, annotations=kept))
    dataset = DetectionDataset(name="kitti_car_train", classes=("car",), records=records)
    log_counts(dataset, EXPECTED, dropped if labels else None)
    return dataset


def _boxes(path: Path, size: tuple[int, int], remedy: str) -> list[Annotation | None]:
    """The cars and regions to ignore of a label file: type, truncation, occlusion, angle, four corners, seven more."""
    try:
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
        if any(len(row) < 15 for row in rows):
            raise ValueError("a line has fewer than 15 columns")
        return [
            box_annotation([float(value) for value in row[4:8]], size, 0, iscrowd=row[0] == "DontCare")
            for row in rows
            if row[0] in ("Car", "DontCare")
        ]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a readable label file of KITTI ({error}); {remedy}") from error
