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

from gh_downstream.detection.data.images import image_size
from gh_downstream.detection.data.records import (
    Annotation,
    DetectionDataset,
    Record,
    box_annotation,
    find_files,
    log_counts,
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
    remedy = "unpack {} (fcav.engin.umich.edu/projects/driving-in-the-matrix) in " + str(root)
    records = []
    dropped = 0
    for path in find_files(images, "*.jpg", remedy.format("repro_10k_images.tgz")):
        height, width = image_size(path, remedy.format("repro_10k_images.tgz"))
        cars: list[Annotation | None] = []
        if labels:
            source = annotations / f"{path.stem}.xml"
            cars = _cars(source, (height, width), remedy.format("repro_10k_annotations.tgz"))
        kept = [car for car in cars if car is not None]
        dropped += len(cars) - len(kept)
        records.append(Record(file_name=str(path), image_id=path.stem, height=height, width=width, annotations=kept))
    dataset = DetectionDataset(name="sim10k_car_train", classes=("car",), records=records)
    log_counts(dataset, EXPECTED, dropped if labels else None)
    return dataset


def _cars(path: Path, size: tuple[int, int], remedy: str) -> list[Annotation | None]:
    try:
        root = ElementTree.parse(path).getroot()
        listed = tuple(int(_text(root, f"size/{side}")) for side in ("height", "width"))
        if listed != size:
            raise ValueError(f"it is of {listed} pixels (height, width), its image of {size}")
        return [
            box_annotation([float(_text(item, f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")], size, 0)
            for item in root.iter("object")
            if _text(item, "name") == "car"
        ]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; {remedy}") from None
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path} is not a readable annotation of Sim10k ({error}); {remedy}") from error


def _text(item: ElementTree.Element, tag: str) -> str:
    text = item.findtext(tag)
    if text is None:
        raise ValueError(f"no {tag} in {item.tag}")
    return text.strip()
