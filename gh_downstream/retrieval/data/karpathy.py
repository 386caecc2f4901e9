"""The JSON of Karpathy's splits of COCO, Flickr30k and Flickr8k (Karpathy and Fei-Fei, CVPR 2015)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


def read_karpathy(path: Path, split: str | None) -> Iterator[tuple[str, str]]:
    """Read image files and captions of one split, or of several.

    Args:
        path: Such as ``dataset_coco.json``.
        split: Name of the split, or names joined by ``+``: ``train+restval`` is the usual training data of COCO.

    Yields:
        File of an image, with its folder where the JSON names one (``val2014/...``), and one of its captions.

    Raises:
        ValueError: If the file is not such a JSON, or ``split`` is missing or not in it.
    """
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        counts = Counter(image["split"] for image in images)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a JSON of Karpathy's splits ({type(error).__name__}: {error}); "
            "for one JSON object a line give format=jsonl"
        ) from error
    chosen = set((split or "").split("+"))
    if not chosen <= set(counts):
        found = ", ".join(f"{name} ({count} images)" for name, count in counts.items())
        raise ValueError(f"{path}: split={split} is not in it; give one of {found}, or several joined by +")
    for number, image in enumerate(images):
        if image["split"] not in chosen:
            continue
        try:
            name = str(Path(image.get("filepath", ""), image["filename"]))
            captions = [sentence["raw"].strip() for sentence in image["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: images[{number}] has no filename and raw sentences ({error!r})") from error
        for caption in captions:
            yield name, caption
