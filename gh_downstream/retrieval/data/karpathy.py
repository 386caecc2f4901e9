"""The JSON of Karpathy's splits of COCO, Flickr30k and Flickr8k (Karpathy and Fei-Fei, CVPR 2015)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gh_downstream.retrieval.data.config import DataConfig
from gh_downstream.retrieval.data.values import Pair, chosen_splits


def read_karpathy(path: Path, config: DataConfig) -> Iterator[Pair]:
    """Read one split, or several: ``train+restval`` is the usual training data of COCO.

    Images are in the folder that the JSON names, if it does (``val2014/...``).

    Raises:
        ValueError: The file is not such a JSON, or ``split`` is missing or not in it.
    """
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        counts = Counter(image["split"] for image in images)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a JSON of Karpathy's splits ({type(error).__name__}: {error}); "
            "for one JSON object a line give format=jsonl"
        ) from error
    chosen = chosen_splits(path, config.split, counts, "images")
    for number, image in enumerate(images):
        if image["split"] not in chosen:
            continue
        try:
            name = str(Path(image.get("filepath", ""), image["filename"]))
            captions = [sentence["raw"].strip() for sentence in image["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: images[{number}] has no filename and raw sentences ({error!r})") from error
        for caption in captions:
            yield config.located(name), caption
