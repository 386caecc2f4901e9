"""One call for every format."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gh_downstream.data.images import list_images
from gh_downstream.data.skipped import listed
from gh_downstream.retrieval.data.classes import read_classes, templates_of
from gh_downstream.retrieval.data.config import FORMATS, SIDES, DataConfig
from gh_downstream.retrieval.data.huggingface import is_saved, read_parquet, read_saved
from gh_downstream.retrieval.data.json_files import read_json
from gh_downstream.retrieval.data.records import RetrievalDataset
from gh_downstream.retrieval.data.text_files import read_captions, read_csv, read_jsonl
from gh_downstream.retrieval.data.values import Fault, Pair
from gh_downstream.retrieval.data.webdataset import read_webdataset

_READERS: dict[str, Callable[[Path, DataConfig], Iterable[Pair]]] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "json": read_json,
    "coco": read_json,
    "karpathy": read_json,
    "parquet": read_parquet,
    "hf": read_saved,
    "folder": lambda path, config: ((image, None) for image in list_images(path)),
    "classes": read_classes,
    "captions": read_captions,
}


_WITHOUT_SPLIT = ("webdataset", "folder", "classes", "captions")


def load_dataset(
    config: DataConfig, max_skipped: float = 0.0, each: Callable[..., Iterable[Any]] = map
) -> RetrievalDataset:
    """Read which images and captions there are; the images themselves are not opened.

    An image that has several captions, in several rows too, is listed once.

    Args:
        config: Where and how.
        max_skipped: Share of the captions that may be null, empty or unreadable, at least 0 and less than 1: they are
            left out, and listed in ``skipped``.
        each: Maps a function over the shards of ``webdataset``; another than ``map`` may share them between processes.

    Returns:
        The data set, named by its path. A folder of images and ``side="images"`` give no texts, a file of captions
        and ``side="texts"`` no images.

    Raises:
        FileNotFoundError: If ``path`` does not exist.
        ValueError: If it cannot be read as the format says, lacks a column or the side asked for, is empty, or has more
            captions to be left out.
        ImportError: If a library that the format needs is not installed.
    """
    path = Path(config.path)
    kind = _format(path, config.format)
    if config.split is not None and kind in _WITHOUT_SPLIT:
        raise ValueError(
            f"{path}: split={config.split} is for Karpathy's JSON, tables and hf, this is read as {kind}; leave it out"
        )
    read = partial(read_webdataset, each=each) if kind == "webdataset" else _READERS[kind]
    images, texts = config.side != "texts", config.side != "images"
    dataset = RetrievalDataset.from_pairs(
        config.path,
        (
            (image if images else None, text if texts or isinstance(text, Fault) else None)
            for image, text in read(path, config)
        ),
    )
    count = len(dataset.skipped) + max(len(dataset.images), len(dataset.texts))
    if len(dataset.skipped) > max_skipped * count:
        raise ValueError(
            f"{path}: {len(dataset.skipped)} of {count} captions cannot be used, more than max_skipped={max_skipped:g} "
            f"allows; mend them, or take them out: {listed(dataset.skipped, '; ')}"
        )
    if not dataset.images and not dataset.texts:
        advice = "; for shards in it give format=webdataset" if kind == "folder" else ""
        raise ValueError(f"{path} has no {SIDES[config.side]}, read as {kind}{advice}")
    return replace(dataset, templates=templates_of(config)) if kind == "classes" else dataset


def _format(path: Path, format: str) -> str:
    if format == "auto":
        if path.is_dir():
            format = "hf" if is_saved(path) else "folder"
        else:
            format = next((name for name, suffixes in FORMATS.items() if path.suffix.lower() in suffixes), "auto")
    if format == "webdataset":
        return format
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not (path.is_dir() or path.is_file()):  # a pipe would be waited for
        raise ValueError(f"{path} is neither a file nor a folder")
    if format == "auto":
        raise ValueError(f"{path}: the suffix does not tell the format; give format={'|'.join(FORMATS)}")
    if path.is_dir() != (format in ("folder", "classes", "hf")):
        raise ValueError(f"{path} is a {'folder' if path.is_dir() else 'file'}, not what format={format} reads")
    return format
