"""Detection data sets as plain records, as COCO ground truth, and what their readers share."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict
from xml.etree import ElementTree

from gh_downstream.data.images import image_sizes
from gh_downstream.data.paths import check_regular

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

    def select(self, classes: Sequence[str] | Mapping[str, Sequence[str]]) -> DetectionDataset:
        """All the images with the annotations of some classes alone, which get their indices in this order.

        Args:
            classes: Their names; or names with aliases, other classes of this data set that are taken for them.

        Raises:
            ValueError: The data set has none of a class and its aliases.
        """
        wanted = classes if isinstance(classes, Mapping) else dict.fromkeys(classes, ())
        if len(wanted) < len(classes):
            raise ValueError(f"classes {[*classes]} name one twice")
        found = {name: [part for part in (name, *aliases) if part in self.classes] for name, aliases in wanted.items()}
        if unknown := sorted(name for name, parts in found.items() if not parts):
            raise ValueError(
                f"{self.name} has no classes {unknown}; it has {', '.join(self.classes) or 'none'}: choose among these "
                "with classes (DATASETS.CLASSES of Detectron2), or name one as an alias, [{car: [vehicle]}]"
            )
        index_of = {self.classes.index(part): index for index, parts in enumerate(found.values()) for part in parts}

        def kept(annotations: list[Annotation]) -> list[Annotation]:
            known = [annotation for annotation in annotations if annotation["category_id"] in index_of]
            return [Annotation({**item, "category_id": index_of[item["category_id"]]}) for item in known]

        records = [Record({**record, "annotations": kept(record["annotations"])}) for record in self.records]
        return replace(self, classes=tuple(wanted), records=records)

    def to_coco(self) -> dict[str, Any]:
        """COCO ground truth, as the ``dataset`` of a ``pycocotools.coco.COCO`` object.

        Image ids are kept, category ids are the index of the class plus 1, annotation ids count from 1 (id 0 reads as
        "no match" in COCOeval).
        """
        annotations = [
            {**annotation, "image_id": record["image_id"], "category_id": annotation["category_id"] + 1}
            for record in self.records
            for annotation in record["annotations"]
        ]
        return {
            "info": {"description": self.name, "fog_density": self.fog_density},
            "images": [
                {"id": r["image_id"], "file_name": r["file_name"], "height": r["height"], "width": r["width"]}
                for r in self.records
            ],
            "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)],
            "categories": [{"id": index, "name": name} for index, name in enumerate(self.classes, start=1)],
        }


@contextmanager
def readable(path: str | Path, kind: str, remedy: str = "") -> Iterator[None]:
    """Raise errors that name a file from what is raised while it is read.

    They say what ``kind`` of file it should be, and end in what the user can do about it, the ``remedy``.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If its content is not what the body of the ``with`` statement takes.
    """
    advice = f"; {remedy}" if remedy else ""
    try:
        if isinstance(path, Path):
            check_regular(path)
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist{advice}") from None
    except RecursionError:
        raise ValueError(f"{path} is not a readable {kind} (nested too deeply){advice}") from None
    except UnicodeDecodeError as error:  # whose repr holds all the bytes of the file
        raise ValueError(f"{path} is not a readable {kind} (not UTF-8: {error}){advice}") from None
    except (AttributeError, ArithmeticError, LookupError, TypeError, ValueError, ElementTree.ParseError) as error:
        raise ValueError(f"{path} is not a readable {kind} ({error!r}){advice}") from error


def find_files(folder: Path, pattern: str, remedy: str) -> list[Path]:
    """List the files of a folder by name: at least one, or a ``FileNotFoundError`` that ends in the remedy."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise FileNotFoundError(f"{folder} {f'holds no {pattern}' if folder.is_dir() else 'does not exist'}; {remedy}")
    return paths


def first_file(paths: Sequence[Path], remedy: str) -> Path:
    """Return the first of two files that exists; a ``FileNotFoundError`` of both ends in the remedy."""
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"neither {' nor '.join(map(str, paths))} exists; {remedy}")


def box_annotation(
    corners: Sequence[float], size: tuple[int, int], category_id: int, iscrowd: bool = False
) -> Annotation | None:
    """Return the annotation of a box, clipped to its image; None where less than a pixel of a side is inside.

    Args:
        corners: Left, top, right and bottom edge in pixels; the image begins at 0.
        size: Height and width of the image in pixels.
        category_id: Index of the class.
        iscrowd: Whether it is a region to ignore.

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


def read_dataset(
    name: str,
    classes: tuple[str, ...],
    paths: Iterable[Path],
    remedy: str,
    boxes: Callable[[Path, tuple[int, int]], list[Annotation | None]] | None,
    expected: int | None,
) -> DetectionDataset:
    """Make a data set of images, each with its file's stem as id, and log its numbers.

    Args:
        name: Its name.
        classes: Its classes.
        paths: The images.
        remedy: What the user can do about one that is missing or corrupt.
        boxes: Returns the annotations of an image, given its path and size, from :func:`box_annotation`; None for a
            data set without labels.
        expected: Its published number of images, where there is one.
    """
    paths, records, dropped = list(paths), [], 0
    for path, (height, width) in zip(paths, image_sizes(paths, remedy), strict=True):
        found = boxes(path, (height, width)) if boxes else []
        kept = [box for box in found if box is not None]
        dropped += len(found) - len(kept)
        records.append(Record(file_name=str(path), image_id=path.stem, height=height, width=width, annotations=kept))
    dataset = DetectionDataset(name, classes, records)
    log_counts(dataset, expected, f"{dropped} thinner than a pixel dropped" if boxes else "")
    return dataset


def log_counts(dataset: DetectionDataset, expected: int | None, changed: str) -> None:
    """Log the numbers of images and boxes, as a warning where the number of images is not the published one.

    ``changed`` says what became of other boxes; it is empty where labels were not read.
    """
    summary = f"{dataset.name}: {len(dataset)} images" + (f" of {expected} expected" if expected is not None else "")
    if changed:
        ignored = sum(annotation["iscrowd"] for record in dataset.records for annotation in record["annotations"])
        summary += f", {dataset.num_boxes} boxes and {ignored} regions to ignore ({changed})"
    else:
        summary += ", labels not read"
    logger.log(logging.INFO if expected in (None, len(dataset)) else logging.WARNING, summary)
