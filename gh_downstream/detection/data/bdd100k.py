"""The daytime images of BDD100K, read from the folders that its archives unpack to.

::

    ROOT/images/100k/SPLIT/FRAME.jpg                    bdd100k_images_100k.zip
    ROOT/labels/det_20/det_SPLIT.json                   bdd100k_det_20_labels_trainval.zip
    ROOT/labels/bdd100k_labels_images_SPLIT.json        bdd100k_labels_release.zip, the older labels, of 2018

Yu et al., "BDD100K: a diverse driving dataset for heterogeneous multitask learning", CVPR 2020. Adaptation from
Cityscapes is published on the daytime images and 7 classes, the trains left out (Xu et al., "Exploring categorical
regularization for domain adaptive object detection", CVPR 2020).
"""

import json
from pathlib import Path
from typing import Any

from gh_downstream.detection.data.records import (
    CITYSCAPES_CLASSES,
    Annotation,
    DetectionDataset,
    box_annotation,
    first_file,
    read_dataset,
    readable,
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
    """Read the daytime images of a split of BDD100K, named ``bdd100k_daytime_SPLIT``, of :data:`BDD100K_CLASSES`.

    The labels of 2020, which BDD100K recommends, are taken where they are, else those of 2018, which figures published
    before are on; the numbers of boxes differ. Crowds and the categories of :data:`IGNORED_AS` become regions to
    ignore, boxes thinner than a pixel are dropped. Image ids are the names of the frames.

    Args:
        root: Folder that holds ``images`` and ``labels``.
        split: ``"train"`` or ``"val"``.
        labels: ``False`` returns no annotation; the labels still tell the daytime images from the others.

    Raises:
        FileNotFoundError: If the labels or an image are missing.
        ValueError: If the split is unknown, or a file is corrupt.
    """
    root = Path(root)
    if split not in EXPECTED:
        raise ValueError(f"split is {split!r}; BDD100K has labels of {', '.join(EXPECTED)}")
    folder = root / "labels"
    names = (Path("det_20", f"det_{split}.json"), f"bdd100k_labels_images_{split}.json")
    unpack = f"unpack {{}} (bdd-data.berkeley.edu) in {root.parent}"
    remedy = unpack.format("bdd100k_det_20_labels_trainval.zip")
    source = first_file([folder / name for name in names], remedy)
    with readable(source, "label file of BDD100K", remedy):
        content = json.loads(source.read_text(encoding="utf-8-sig"))
        daytime = {frame["name"]: frame for frame in content if frame["attributes"]["timeofday"] == "daytime"}
        paths = [root / "images" / "100k" / split / name for name in sorted(daytime)]

    def boxes(path: Path, size: tuple[int, int]) -> list[Annotation | None]:
        with readable(f"{source}: frame {path.name}", "frame of BDD100K", remedy):
            return _boxes(daytime[path.name], size)

    return read_dataset(
        f"bdd100k_daytime_{split}",
        BDD100K_CLASSES,
        paths,
        f"{source} lists it: {unpack.format('bdd100k_images_100k.zip')}",
        boxes if labels else None,
        EXPECTED[split],
    )


def _boxes(frame: dict[str, Any], size: tuple[int, int]) -> list[Annotation | None]:
    boxes: list[Annotation | None] = []
    for label in frame.get("labels") or ():  # a frame without objects has none, or null
        category, box = label["category"], label.get("box2d")
        name = CLASS_OF.get(category) or IGNORED_AS.get(category)
        if name is None or box is None:  # lanes and drivable areas have no box
            continue
        iscrowd = category in IGNORED_AS or bool((label.get("attributes") or {}).get("crowd"))
        corners = [float(box[edge]) for edge in ("x1", "y1", "x2", "y2")]
        boxes.append(box_annotation(corners, size, BDD100K_CLASSES.index(name), iscrowd))
    return boxes
