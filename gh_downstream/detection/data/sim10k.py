"""Sim10k: 10000 streets rendered in a game, read from the folders that its archives unpack to.

::

    ROOT/VOC2012/JPEGImages/FRAME.jpg       repro_10k_images.tgz
    ROOT/VOC2012/Annotations/FRAME.xml      repro_10k_annotations.tgz

Johnson-Roberson et al., "Driving in the Matrix", ICRA 2017. Adaptation to Cityscapes is published on its cars alone,
and cars are all that is read.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from gh_downstream.detection.data.records import (
    Annotation,
    DetectionDataset,
    box_annotation,
    find_files,
    read_dataset,
    readable,
)

EXPECTED = 10000
"""Number of images."""


def load_sim10k(root: str | Path, *, labels: bool = True) -> DetectionDataset:
    """Read the images of Sim10k and their cars.

    The coordinates are taken as they are, as edges that count from 0, and not from 1 as in Pascal VOC, whose format the
    files have. Boxes thinner than a pixel are dropped.

    Args:
        root: Folder that holds ``VOC2012``.
        labels: ``False`` reads no annotation; ``Annotations`` need not exist then.

    Returns:
        The data set with the one class ``car``, named ``sim10k_car_train``; image ids are the names of the frames.

    Raises:
        FileNotFoundError: If the images, or the annotation of one of them, are missing.
        ValueError: If a file is corrupt, or an annotation does not fit its image.
    """
    images, annotations = (Path(root) / "VOC2012" / folder for folder in ("JPEGImages", "Annotations"))
    unpack = f"unpack {{}} (fcav.engin.umich.edu/projects/driving-in-the-matrix) in {root}"
    archive = unpack.format("repro_10k_images.tgz")

    def boxes(image: Path, size: tuple[int, int]) -> list[Annotation | None]:
        path = annotations / f"{image.stem}.xml"
        with readable(path, "annotation of Sim10k", unpack.format("repro_10k_annotations.tgz")):
            tree = ElementTree.parse(path).getroot()
            height, width = _numbers(tree, "size", "height", "width")
            if (height, width) != size:
                raise ValueError(f"it is of {(int(height), int(width))} pixels (height, width), its image of {size}")
            cars = [item for item in tree.iter("object") if _text(item, "name") == "car"]
            return [box_annotation(_numbers(car, "bndbox", "xmin", "ymin", "xmax", "ymax"), size, 0) for car in cars]

    paths = find_files(images, "*.jpg", archive)
    return read_dataset("sim10k_car_train", ("car",), paths, archive, boxes if labels else None, EXPECTED)


def _numbers(item: ElementTree.Element, tag: str, *names: str) -> list[float]:
    return [float(_text(item, f"{tag}/{name}")) for name in names]


def _text(item: ElementTree.Element, tag: str) -> str:
    text = item.findtext(tag)
    if text is None:
        raise ValueError(f"no {tag} in {item.tag}")
    return text.strip()
