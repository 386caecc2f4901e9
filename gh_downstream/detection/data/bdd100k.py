"""The daytime images of BDD100K, read from the folders that its archives unpack to.

::

    ROOT/images/100k/SPLIT/FRAME.jpg                    bdd100k_images_100k.zip
    ROOT/labels/det_20/det_SPLIT.json                   bdd100k_det_20_labels_trainval.zip
    ROOT/labels/bdd100k_labels_images_SPLIT.json        bdd100k_labels_release.zip, the older labels, of 2018

Yu et al., "BDD100K: a diverse driving dataset for heterogeneous multitask learning", CVPR 2020. Adaptation from
Cityscapes is published on the daytime images and 7 classes, the trains left out (Xu et al., "Exploring categorical
regularization for domain adaptive object detection", CVPR 2020).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gh_downstream.detection.data.images import image_size
from gh_downstream.detection.data.records import (
    CITYSCAPES_CLASSES,
    Annotation,
    DetectionDataset,
    Record,
    box_annotation,
    log_counts,
)

BDD100K_CLASSES = tuple(name for name in CITYSCAPES_CLASSES if name != "train")
"""The 7 classes that Cityscapes and BDD100K share, in the order of Cityscapes."""

EXPECTED = {"train": 36728, "val": 5258}
"""Number of daytime images in each split."""

CLASS_OF = {name: name for name in BDD100K_CLASSES} | {
    "pedestrian": "person",  # labels of 2020
    "bike": "bicycle",  # labels of 2018
    "motor": "motorcycle",
}
"""The class that a category of BDD100K counts as; other categories are left out."""

IGNORED_AS = {"other person": "person", "other vehicle": "car", "trailer": "truck"}
"""Categories that are regions to ignore, as in BDD100K's own evaluation, and the class at which they are."""


def load_bdd100k_daytime(root: str | Path, split: str, *, labels: bool = True) -> DetectionDataset:
    """Read the daytime images of a split of BDD100K.

    The labels of 2020, which BDD100K recommends, are taken where they are, else those of 2018, which figures published
    before are on; the numbers of boxes differ. Crowds and the categories of :data:`IGNORED_AS` become regions to
    ignore, boxes thinner than a pixel are dropped.

    Args:
        root: Folder that holds ``images`` and ``labels``.
        split: ``"train"`` or ``"val"``.
        labels: ``False`` returns no annotation; the labels still tell the daytime images from the others.

    Returns:
        The data set with the classes :data:`BDD100K_CLASSES`, named ``bdd100k_daytime_SPLIT``; image ids are the names
        of the frames.

    Raises:
        FileNotFoundError: If the labels or an image are missing.
        ValueError: If the split is unknown, or a file is corrupt.
    """
    root = Path(root)
    if split not in EXPECTED:
        raise ValueError(f"split is {split!r}; BDD100K has labels of {', '.join(EXPECTED)}")
    source = _label_file(root, split)
    frames = _daytime_frames(source)
    remedy = f"{source} lists it: unpack bdd100k_images_100k.zip (bdd-data.berkeley.edu) in {root.parent}"
    records = []
    dropped = 0
    for frame in frames:
        path = root / "images" / "100k" / split / frame["name"]
        height, width = image_size(path, remedy)
        boxes = _boxes(frame, (height, width), source) if labels else []
        kept = [box for box in boxes if box is not None]
        dropped += len(boxes) - len(kept)
        records.append(Record(file_name=str(path), image_id=path.stem, height=height, width=width, annotations=kept))
    dataset = DetectionDataset(name=f"bdd100k_daytime_{split}", classes=BDD100K_CLASSES, records=records)
    log_counts(dataset, EXPECTED[split], dropped if labels else None)
    return dataset


def _label_file(root: Path, split: str) -> Path:
    recent = root / "labels" / "det_20" / f"det_{split}.json"
    older = root / "labels" / f"bdd100k_labels_images_{split}.json"
    for path in (recent, older):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"neither {recent} nor {older} exists; unpack bdd100k_det_20_labels_trainval.zip (bdd-data.berkeley.edu) "
        f"in {root.parent}"
    )


def _daytime_frames(path: Path) -> list[dict[str, Any]]:
    try:
        frames = json.loads(path.read_text(encoding="utf-8"))
        daytime = [frame for frame in frames if frame["attributes"]["timeofday"] == "daytime"]
        return sorted(daytime, key=lambda frame: frame["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable label file of BDD100K ({error!r}); unpack its archive again"
        ) from error


def _boxes(frame: dict[str, Any], size: tuple[int, int], path: Path) -> list[Annotation | None]:
    boxes: list[Annotation | None] = []
    try:
        for label in frame.get("labels") or ():  # a frame without objects has none, or null
            category, box = label["category"], label.get("box2d")
            name = CLASS_OF.get(category) or IGNORED_AS.get(category)
            if name is None or box is None:  # lanes and drivable areas have no box
                continue
            iscrowd = category in IGNORED_AS or bool((label.get("attributes") or {}).get("crowd"))
            corners = [float(box[edge]) for edge in ("x1", "y1", "x2", "y2")]
            boxes.append(box_annotation(corners, size, BDD100K_CLASSES.index(name), iscrowd))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: frame {frame['name']} has no readable labels ({error!r})") from error
    return boxes
