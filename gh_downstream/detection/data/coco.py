"""Any data set in COCO's format: one JSON and a folder of images."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gh_downstream.data.images import image_size
from gh_downstream.detection.data.records import Annotation, DetectionDataset, Record, log_counts, readable


def load_coco(
    json_path: str | Path,
    image_root: str | Path,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    labels: bool = True,
) -> DetectionDataset:
    """Read a COCO-format JSON and its folder of images as detection records.

    Every image of the JSON becomes a record. Boxes that stick out of their image are clipped, boxes thinner than
    a pixel are dropped; one log line says how many. Image ids are kept.

    Args:
        json_path: The JSON, with ``images``, ``annotations`` and ``categories``.
        image_root: Folder that the ``file_name`` of the images is relative to.
        name: Name of the data set; that of the JSON by default.
        classes: All the names of the categories, in the order that class indices shall have; the order of the
            category ids by default. Source and target must have the same.
        labels: ``False`` reads no annotation, for an unlabelled target.

    Raises:
        FileNotFoundError: If the JSON or an image is missing.
        ValueError: If the JSON or an image is corrupt, or they do not fit each other or ``classes``.
    """
    json_path, image_root = Path(json_path), Path(image_root)
    content = _read(json_path)
    classes, index_of_category = _classes(content["categories"], classes, json_path)

    records: dict[int | str, Record] = {}
    for image in content["images"]:
        path, key = image_root / image["file_name"], image["id"]
        size = image_size(path, f"{json_path} lists it")
        listed = image.get("height", size[0]), image.get("width", size[1])
        if listed != size:
            raise ValueError(f"{path} is of {size} pixels (height, width), {json_path} says {listed}")
        if key in records:
            raise ValueError(f"{json_path}: two images have the id {key}")
        records[key] = Record(file_name=str(path), image_id=key, height=size[0], width=size[1], annotations=[])

    clipped = dropped = 0
    for annotation in content["annotations"] if labels else ():
        where = f"{json_path}: annotation {annotation.get('id')}"
        record = records.get(annotation["image_id"])
        if record is None:
            raise ValueError(f"{where} is of image {annotation['image_id']}, which the file does not list")
        category = index_of_category.get(annotation["category_id"])
        if category is None:
            raise ValueError(f"{where} has category {annotation['category_id']}, which the file does not list")
        box = _box(annotation, where)
        x, y, w, h = box
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + w, float(record["width"])), min(y + h, float(record["height"]))
        inside = (left, top, right, bottom) == (x, y, x + w, y + h)
        bbox = box if inside else [left, top, right - left, bottom - top]
        if min(w, h) >= 1 and min(bbox[2:]) <= 0:
            raise ValueError(
                f"{where}: the box {box} lies outside its image "
                f"{record['file_name']} of {record['width']} x {record['height']} pixels"
            )
        if min(bbox[2:]) < 1:
            dropped += 1
            continue
        clipped += not inside
        area = bbox[2] * bbox[3]
        area, iscrowd = min(float(annotation.get("area", area)), area), int(annotation.get("iscrowd", 0))
        record["annotations"].append(Annotation(bbox=bbox, category_id=category, area=area, iscrowd=iscrowd))

    dataset = DetectionDataset(name=name or json_path.stem, classes=classes, records=list(records.values()))
    changed = f"{clipped} clipped to their image, {dropped} thinner than a pixel dropped"
    log_counts(dataset, None, changed if labels else "")
    return dataset


def read_classes(json_path: str | Path) -> tuple[str, ...]:
    """Read the names of the categories of a COCO-format JSON, in the order of their ids; errors as of the whole."""
    path = Path(json_path)
    return _classes(_read(path)["categories"], None, path)[0]


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    with readable(path, "JSON file", "give the COCO-format JSON of the data set"):
        content = json.loads(path.read_text(encoding="utf-8"))
    required = {
        "images": {"id", "file_name"},
        "annotations": {"image_id", "category_id", "bbox"},
        "categories": {"id", "name"},
    }
    for key, fields in required.items():
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise ValueError(f"{path} is not in COCO's format: it has no list '{key}'")
        for number, item in enumerate(items):
            if not (isinstance(item, dict) and fields <= item.keys()):
                raise ValueError(f"{path} is not in COCO's format: {key}[{number}] lacks one of {sorted(fields)}")
    return content


def _classes(
    categories: list[dict[str, Any]], classes: Sequence[str] | None, path: Path
) -> tuple[tuple[str, ...], dict[int, int]]:
    names = {category["id"]: category["name"] for category in sorted(categories, key=lambda item: item["id"])}
    ordered = tuple(names.values()) if classes is None else tuple(classes)
    if len(set(ordered)) != len(ordered) or set(ordered) != set(names.values()):
        raise ValueError(
            f"classes are {list(ordered)}, the categories of {path} are {list(names.values())}; "
            "source and target must have the same"
        )
    return ordered, {key: ordered.index(name) for key, name in names.items()}


def _box(annotation: dict[str, Any], where: str) -> list[float]:
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
        valid = all(map(math.isfinite, (x, y, width, height, annotation.get("area", 0)))) and min(width, height) >= 0
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"{where}: bbox {annotation['bbox']} is not [x, y, width, height] in finite numbers")
    return [x, y, width, height]
