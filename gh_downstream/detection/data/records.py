"""Detection data sets as plain records, as COCO ground truth, and what their readers share."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

logger = logging.getLogger(__name__)

CITYSCAPES_CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
"""The 8 detection classes, in the order of Cityscapes' label ids (and of Detectron2)."""


class Annotation(TypedDict):
    """One annotated object.

    Attributes:
        bbox: ``[x, y, width, height]`` in pixels of the image; the pixel in row ``r`` and column ``c`` covers
            ``[c, c + 1] x [r, r + 1]``.
        category_id: Index into the data set's classes, from 0.
        area: Visible pixels of the object, or the area of its box where no mask is known.
        iscrowd: 1 for a region that evaluation ignores (a group that nobody told apart), else 0.
    """

    bbox: list[float]
    category_id: int
    area: float
    iscrowd: int


class Record(TypedDict):
    """One image with its annotations; ``file_name`` is the path of the image."""

    file_name: str
    image_id: int | str
    height: int
    width: int
    annotations: list[Annotation]


@dataclass(frozen=True)
class DetectionDataset:
    """Images with annotated boxes.

    Args:
        name: Names the data in every table, its fog density included.
        classes: Names of the classes; an annotation's ``category_id`` is an index into them.
        records: One for each image; an image without objects has a record too.
        fog_density: Attenuation coefficient of the fog in 1/m, or ``None`` for clear images.
    """

    name: str
    classes: tuple[str, ...]
    records: list[Record]
    fog_density: float | None = None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_boxes(self) -> int:
        """Number of annotated objects, regions to ignore (``iscrowd``) excluded."""
        return sum(not annotation["iscrowd"] for record in self.records for annotation in record["annotations"])

    def without_labels(self) -> DetectionDataset:
        """The same images with no annotations: all that training may see of an unlabelled target."""
        return replace(self, records=[Record({**record, "annotations": []}) for record in self.records])

    def select(self, classes: Sequence[str]) -> DetectionDataset:
        """The same images with the annotations of some classes alone.

        Args:
            classes: Names of the classes, in the order that their indices shall have.

        Returns:
            All the images, those without an object of these classes too.

        Raises:
            ValueError: If a class is unknown.
        """
        if unknown := set(classes) - set(self.classes):
            raise ValueError(f"{self.name} has no classes {sorted(unknown)}; it has {', '.join(self.classes)}")
        index_of = {self.classes.index(name): index for index, name in enumerate(classes)}
        records = [
            Record(
                {
                    **record,
                    "annotations": [
                        Annotation({**annotation, "category_id": index_of[annotation["category_id"]]})
                        for annotation in record["annotations"]
                        if annotation["category_id"] in index_of
                    ],
                }
            )
            for record in self.records
        ]
        return replace(self, classes=tuple(classes), records=records)

    def to_coco(self) -> dict[str, Any]:
        """COCO ground truth, as the ``dataset`` of a ``pycocotools.coco.COCO`` object.

        Returns:
            COCO's dictionary of ``info``, ``images``, ``annotations`` and ``categories``. Image ids are kept,
            category ids are the index of the class plus 1, annotation ids count from 1 (id 0 reads as "no match"
            in COCOeval).
        """
        annotations = [
            {**annotation, "image_id": record["image_id"], "category_id": annotation["category_id"] + 1}
            for record in self.records
            for annotation in record["annotations"]
        ]
        return {
            "info": {"description": self.name, "fog_density": self.fog_density},
            "images": [
                {
                    "id": record["image_id"],
                    "file_name": record["file_name"],
                    "height": record["height"],
                    "width": record["width"],
                }
                for record in self.records
            ],
            "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)],
            "categories": [{"id": index, "name": name} for index, name in enumerate(self.classes, start=1)],
        }


def find_files(folder: Path, pattern: str, remedy: str) -> list[Path]:
    """List the files of a folder in the order of their names.

    Args:
        folder: The folder.
        pattern: Wildcard of their names.
        remedy: What the user can do where there are none; ends the error message.

    Returns:
        At least one path.

    Raises:
        FileNotFoundError: If there are none, or no folder.
    """
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise FileNotFoundError(f"{folder} {f'holds no {pattern}' if folder.is_dir() else 'does not exist'}; {remedy}")
    return paths


def box_annotation(
    corners: Sequence[float], size: tuple[int, int], category_id: int, iscrowd: bool = False
) -> Annotation | None:
    """Return the annotation of a box, clipped to its image.

    Args:
        corners: Left, top, right and bottom edge in pixels; the image begins at 0.
        size: Height and width of the image in pixels.
        category_id: Index of the class.
        iscrowd: Whether it is a region to ignore.

    Returns:
        The annotation, or None where less than a pixel of width or height is inside the image.

    Raises:
        ValueError: If the corners are not four finite numbers.
    """
    if len(corners) != 4 or not all(map(math.isfinite, corners)):
        raise ValueError(f"the corners {list(corners)} of a box are not four finite numbers")
    left, top, right, bottom = map(float, corners)
    height, width = size
    x, y = max(left, 0.0), max(top, 0.0)
    w, h = min(right, float(width)) - x, min(bottom, float(height)) - y
    if min(w, h) < 1:
        return None
    return Annotation(bbox=[x, y, w, h], category_id=category_id, area=w * h, iscrowd=int(iscrowd))


def log_counts(dataset: DetectionDataset, expected: int, dropped: int | None) -> None:
    """Log the numbers of images and boxes, as a warning where the number of images is not the published one.

    Args:
        dataset: The data set.
        expected: Its published number of images.
        dropped: Number of boxes that were left out as thinner than a pixel; None where labels were not read.
    """
    summary = f"{dataset.name}: {len(dataset)} images of {expected} expected"
    if dropped is None:
        summary += ", labels not read"
    else:
        ignored = sum(annotation["iscrowd"] for record in dataset.records for annotation in record["annotations"])
        summary += (
            f", {dataset.num_boxes} boxes and {ignored} regions to ignore ({dropped} thinner than a pixel dropped)"
        )
    logger.log(logging.INFO if len(dataset) == expected else logging.WARNING, summary)
