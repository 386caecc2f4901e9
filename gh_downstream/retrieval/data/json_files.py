"""Whole JSON files: arrays of rows, COCO's captions, Karpathy's splits."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as short
from typing import Any

from gh_downstream.retrieval.data.config import DataConfig
from gh_downstream.retrieval.data.values import (
    Fault,
    Pair,
    captions_of,
    checked_object,
    chosen_splits,
    image_file,
    json_value,
    table_pairs,
    utf8,
)


def read_json(path: Path, config: DataConfig) -> Iterator[Pair]:
    """Read a JSON file: an array of rows, or what COCO or Karpathy make, told apart by what is in it.

    Raises:
        ValueError: The file is none of them, or not what ``format`` says, or ``split`` does not fit it.
    """
    with utf8(path):
        text = path.read_text(encoding="utf-8-sig")
    try:
        content = json_value(text, str(path))
    except ValueError as error:
        raise ValueError(f"{error}; for one JSON object a line give format=jsonl") from error
    kind = config.format
    if kind in ("auto", "json"):
        coco = isinstance(content, dict) and "annotations" in content
        kind = "json" if isinstance(content, list) else "coco" if coco else "karpathy"
    if kind == "json":
        places = ((f"{path}, [{number}]", row) for number, row in enumerate(content))
        rows = ((where, checked_object(row, where)) for where, row in places)
        yield from table_pairs(path, rows, config)
    else:
        yield from (_coco if kind == "coco" else _karpathy)(path, content, config)


def _coco(path: Path, content: Any, config: DataConfig) -> Iterator[Pair]:
    """Read the captions of COCO's ``captions_*.json``, image by image; a JSON without any has images alone."""
    if config.split is not None:
        raise ValueError(f"{path}: COCO's captions have a file for each split; leave split={config.split} out")
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[Any, list[tuple[int, Any]]] = {key: [] for key in names}
        for number, annotation in enumerate(content["annotations"]):
            captions[annotation["image_id"]].append((number, annotation["caption"]))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a JSON of COCO's captions ({type(error).__name__}: {str(error)[:80]}): images with id and "
            "file_name, annotations with the image_id of one of these and a caption"
        ) from error
    if len(names) < len(content["images"]):
        raise ValueError(f"{path}: two images have one id, so that captions have no image of their own")
    for key, name in names.items():
        where = f"{path}, image {short(key)}"
        image = None if config.side == "texts" else image_file(name, config, where, "file_name")
        if config.side == "images" or not content["annotations"]:
            yield image, None
        elif not captions[key]:
            yield None, Fault(f"{where} has no caption")
        else:
            for number, value in captions[key]:
                for caption in captions_of(value, "caption", f"{path}, annotations[{number}]"):
                    yield image, caption


def _karpathy(path: Path, content: Any, config: DataConfig) -> Iterator[Pair]:
    """Read splits of the JSON of COCO, Flickr30k and Flickr8k by Karpathy and Fei-Fei (CVPR 2015).

    ``train+restval`` is the usual training data of COCO. Images are in the folder that the JSON names, if it does.
    """
    try:
        images = content["images"]
        counts = Counter(image["split"] for image in images)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a JSON of Karpathy's splits ({type(error).__name__}: {str(error)[:80]}), nor an array of "
            "rows or captions of COCO; for one JSON object a line give format=jsonl"
        ) from error
    chosen = chosen_splits(path, config.split, counts, "images")
    for number, entry in enumerate(images):
        if entry["split"] not in chosen:
            continue
        where = f"{path}: images[{number}]"
        try:
            name = str(Path(entry.get("filepath", ""), entry["filename"]))
            values = [sentence["raw"] for sentence in entry["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} has no filename and raw sentences ({error!r})") from error
        image = None if config.side == "texts" else image_file(name, config, where, "filename")
        if config.side == "images":
            yield image, None
        elif not values:
            yield None, Fault(f"{where} has no sentences")
        else:
            for value in values:
                for caption in captions_of(value, "raw", where):
                    yield image, caption
