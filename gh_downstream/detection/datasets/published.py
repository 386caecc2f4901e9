"""What the readers of published data sets share: finding files, boxes from corners, and counts as published."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from gh_downstream.detection.datasets.records import Annotation, DetectionDataset

logger = logging.getLogger(__name__)


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
