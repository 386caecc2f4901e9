"""Detection data sets as plain records, and as COCO ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

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
