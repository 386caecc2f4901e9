"""Any data set in COCO's format, one JSON and a folder of images, and folders of images alone."""

import json
import reprlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gh_downstream.data.images import image_sizes, list_images
from gh_downstream.data.paths import path_in, printable
from gh_downstream.detection.data.records import Annotation, DetectionDataset, Record, log_counts, readable


def load_coco(
    json_path: str | Path,
    image_root: str | Path,
    name: str | None = None,
    classes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    labels: bool = True,
    outside_root: bool = False,
) -> DetectionDataset:
    """Read a COCO-format JSON and its folder of images as detection records.

    Every image of the JSON becomes a record. Boxes that stick out of their image are clipped, boxes thinner than
    a pixel are dropped; one log line says how many. Image ids are kept. A value of null counts as not given,
    an id of 1.0 as 1.

    Args:
        json_path: The JSON, with ``images``, ``annotations`` and ``categories``.
        image_root: Folder that the ``file_name`` of the images is relative to.
        name: Name of the data set; that of the JSON by default.
        classes: Categories to keep, in the order that class indices shall have, with aliases where it is a mapping; see
            :meth:`DetectionDataset.select`. By default all, in the order of their ids.
        labels: ``False`` reads no annotation, for an unlabelled target: ``annotations`` and ``categories`` need not be
            there, and ``classes`` are not looked at.
        outside_root: Whether a ``file_name`` may lead out of the folder.

    Raises:
        FileNotFoundError: If the JSON or an image is missing.
        ValueError: If the JSON or an image is corrupt, or they do not fit each other or ``classes``.
    """
    json_path = Path(json_path)
    content = _read(json_path, labels)
    names = _categories(content, json_path)
    records = _records(content["images"], json_path, image_root, outside_root)
    changed = _annotate(records, content["annotations"], [*names], json_path) if labels else ""
    dataset = DetectionDataset(name or json_path.stem, (*names.values(),), list(records.values()))
    if labels and classes is not None:
        boxes = dataset.num_boxes
        try:
            dataset = dataset.select(classes)
        except ValueError as error:
            raise ValueError(f"{json_path}: {error}") from None
        changed += f", {boxes - dataset.num_boxes} of other categories left out"
    log_counts(dataset, None, changed)
    return dataset


def load_images(folder: str | Path, name: str | None = None) -> DetectionDataset:
    """Read a folder of images, and the folders in it, as a data set without labels and classes; ids are their paths.

    Raises:
        FileNotFoundError: If it is no folder.
        ValueError: If there is no image in it, or one cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder of images")
    paths = list_images(folder)
    if not paths:
        raise ValueError(f"{folder} holds no images")
    records = [
        Record(file_name=path, image_id=str(Path(path).relative_to(folder)), height=height, width=width, annotations=[])
        for path, (height, width) in zip(paths, image_sizes(paths), strict=True)
    ]
    dataset = DetectionDataset(name or folder.name, (), records)
    log_counts(dataset, None, "")
    return dataset


@cache
def read_classes(json_path: str) -> tuple[str, ...]:
    """Read the names of the categories of a COCO-format JSON, in the order of their ids; none where it has no list."""
    path = Path(json_path)
    return (*_categories(_read(path, labels=False), path).values(),)


def _read(path: Path, labels: bool) -> dict[str, list[dict[str, Any]]]:
    with readable(path, "JSON file", "give the COCO-format JSON of the data set"):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    required = {"images": {"id", "file_name"}}
    if labels:
        required["annotations"] = {"image_id", "category_id", "bbox"}
    if labels or (isinstance(content, dict) and content.get("categories") is not None):
        required["categories"] = {"id", "name"}
    for key, fields in required.items():
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise ValueError(f"{path} is not in COCO's format: it has no list '{key}'")
        for number, item in enumerate(items):
            if not (isinstance(item, dict) and fields <= item.keys()):
                raise ValueError(f"{path} is not in COCO's format: {key}[{number}] lacks one of {sorted(fields)}")
            for field in item.keys() & {"id", "image_id", "category_id"}:
                if isinstance(item[field], float) and item[field].is_integer():  # as tables of numbers write them
                    item[field] = int(item[field])
    for key in ("images", "categories"):
        _check_ids(content.get(key) or [], key, path)
    return content


def _check_ids(items: list[dict[str, Any]], key: str, path: Path) -> None:
    """Ids are what annotations name, and what an evaluation sorts."""
    seen = set()
    for number, item in enumerate(items):
        found = item["id"]
        if type(found) not in (int, str) or type(found) is not type(items[0]["id"]):
            alike = f"whole numbers or texts, all alike; that of {key}[0] is {_shown(items[0]['id'])}"
            raise ValueError(f"{path}: {key}[{number}]: id is {_shown(found)}; ids are {alike}")
        if found in seen:
            raise ValueError(f"{path}: two {key} have the id {_shown(found)}")
        seen.add(found)


def _categories(content: dict[str, list[dict[str, Any]]], path: Path) -> dict[int | str, str]:
    """The names of the categories by id, in the order of the ids."""
    names: dict[int | str, str] = {}
    for number, item in enumerate(content.get("categories") or []):
        name = _text(item, "name", f"{path}: categories[{number}]")
        if not name.isprintable():
            raise ValueError(f"{path}: categories[{number}]: name {_shown(name)} cannot be printed")
        if name in names.values():
            raise ValueError(f"{path}: two categories are named {_shown(name)}; give them one id, or different names")
        names[item["id"]] = name
    return dict(sorted(names.items()))


def _records(images: list[dict[str, Any]], path: Path, root: str | Path, outside_root: bool) -> dict[int | str, Record]:
    """The records of the images by id, without annotations."""
    if not images:
        raise ValueError(f"{path} lists no image")
    places = [f"{path}: images[{number}]" for number in range(len(images))]
    files = [
        path_in(root, _text(image, "file_name", where), outside_root, where)
        for image, where in zip(images, places, strict=True)
    ]
    records: dict[int | str, Record] = {}
    for image, where, file, size in zip(images, places, files, image_sizes(files, f"{path} lists it"), strict=True):
        given = {edge: image[edge] for edge in ("height", "width") if image.get(edge) is not None}
        for edge, value in given.items():
            _number(value, edge, where)
        listed = given.get("height", size[0]), given.get("width", size[1])
        if listed != size:
            upright = "; those are of the image set upright by its EXIF orientation" if listed == size[::-1] else ""
            raise ValueError(f"{printable(file)} is of {size} pixels (height, width){upright}, {path} says {listed}")
        records[image["id"]] = Record(
            file_name=file, image_id=image["id"], height=size[0], width=size[1], annotations=[]
        )
    return records


def _annotate(
    records: dict[int | str, Record], annotations: list[dict[str, Any]], categories: list[int | str], path: Path
) -> str:
    """Fill in the annotations of records, and return what became of boxes."""
    clipped = dropped = 0
    index_of = {key: index for index, key in enumerate(categories)}
    for number, annotation in enumerate(annotations):
        key = annotation.get("id")
        where = f"{path}: annotation {_shown(key)}" if isinstance(key, (int, str)) else f"{path}: annotations[{number}]"
        record = _listed(records, annotation, "image_id", where)
        category = _listed(index_of, annotation, "category_id", where)
        x, y, w, h = box = _box(annotation["bbox"], where)
        area = annotation.get("area")
        area = w * h if area is None else _number(area, "area", where)
        iscrowd = 0 if annotation.get("iscrowd") is None else annotation["iscrowd"]
        if iscrowd not in (0, 1):
            raise ValueError(f"{where}: iscrowd is {_shown(iscrowd)}, expected 0 or 1")
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + w, float(record["width"])), min(y + h, float(record["height"]))
        inside = (left, top, right, bottom) == (x, y, x + w, y + h)
        bbox = box if inside else [left, top, right - left, bottom - top]
        if min(w, h) >= 1 and min(bbox[2:]) <= 0:
            raise ValueError(
                f"{where}: the box {box} lies outside its image "
                f"{printable(record['file_name'])} of {record['width']} x {record['height']} pixels"
            )
        if min(bbox[2:]) < 1:
            dropped += 1
            continue
        clipped += not inside
        area = min(area, bbox[2] * bbox[3])
        record["annotations"].append(Annotation(bbox=bbox, category_id=category, area=area, iscrowd=int(iscrowd)))
    return f"{clipped} clipped to their image, {dropped} thinner than a pixel dropped"


def _listed(known: Mapping[Any, Any], annotation: dict[str, Any], field: str, where: str) -> Any:
    """What the file lists under the id that an annotation names."""
    key = annotation[field]
    if type(key) not in (int, str) or key not in known:
        raise ValueError(f"{where}: {field} is {_shown(key)}, which the file does not list")
    return known[key]


def _box(value: Any, where: str) -> list[float]:
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"{where}: bbox {_shown(value)} is not [x, y, width, height]")
    x, y = (_number(edge, "bbox", where, None) for edge in value[:2])
    return [x, y, *(_number(edge, "bbox", where) for edge in value[2:])]


def _number(value: Any, field: str, where: str, least: float | None = 0) -> float:
    """A finite number of at least ``least``; of more digits than a float has there is none in an image."""
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**53
    if not valid or (least is not None and value < least):
        lowest = "" if least is None else f" of at least {least}"
        raise ValueError(f"{where}: {field} has {_shown(value)}, expected a finite number{lowest}")
    return float(value)


def _text(item: dict[str, Any], field: str, where: str) -> str:
    if not isinstance(item[field], str) or not item[field]:
        raise ValueError(f"{where}: {field} is {_shown(item[field])}, expected a text")
    return item[field]


def _shown(value: Any) -> str:
    """A value in a message: of one line, and not of any length."""
    return reprlib.repr(value)
