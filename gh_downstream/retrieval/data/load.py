"""One call for every format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gh_downstream.data.images import StoredImage, list_images
from gh_downstream.retrieval.data.captions import read_captions
from gh_downstream.retrieval.data.huggingface import is_saved, read_saved
from gh_downstream.retrieval.data.karpathy import read_karpathy
from gh_downstream.retrieval.data.records import RetrievalDataset
from gh_downstream.retrieval.data.tabular import read_csv, read_jsonl
from gh_downstream.retrieval.data.webdataset import read_webdataset

_FORMAT_OF_SUFFIX = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "karpathy",
    ".txt": "captions",
    ".tar": "webdataset",
}
_FORMATS = ("auto", "csv", "jsonl", "karpathy", "webdataset", "hf", "folder", "captions")


@dataclass
class DataConfig:
    """Where images and captions are, and how to read them.

    Attributes:
        path: The table, the JSON, the text file, the shards or the folder.
        format: ``csv`` (of any separator), ``jsonl``, ``karpathy``, ``webdataset`` (a tar, a folder of tars, or a
            pattern such as ``shards/{000..010}.tar``), ``hf`` (a folder that ``save_to_disk`` of Hugging Face's
            ``datasets`` wrote), ``folder`` (of images), ``captions`` (a text file with one on each line), or ``auto``:
            by the suffix of ``path``, and for a folder ``hf`` or ``folder``.
        images: Folder that the names of images are relative to; by default that of ``path``, or ``path`` where it is
            one.
        image_column: Column, or key, of the image's file; for ``hf`` of the images or their files.
        text_column: Column, or key, of the caption; except in a CSV a list of captions too. In shards the key in
            ``.json``; samples without it have their caption in ``.txt``.
        separator: Separator of a CSV; found from the header by default.
        split: Split of Karpathy's JSON or of a ``DatasetDict``, such as ``train+restval``.
        side: ``both``, or ``images`` or ``texts`` to leave the other unread.
    """

    path: str
    format: str = "auto"
    images: str | None = None
    image_column: str = "image"
    text_column: str = "caption"
    separator: str | None = None
    split: str | None = None
    side: str = "both"

    def __post_init__(self) -> None:
        for name, value, choices in (("format", self.format, _FORMATS), ("side", self.side, _SIDES)):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
        if self.separator is not None and len(self.separator) != 1:
            raise ValueError(f"separator must be one character, got {self.separator!r}; leave it out to have it found")


_SIDES = ("both", "images", "texts")


def load_dataset(config: DataConfig) -> RetrievalDataset:
    """Read which images and captions there are; the images themselves are not opened.

    An image that has several captions, in several rows too, is listed once.

    Returns:
        The data set, named by its path. A folder of images and ``side="images"`` give no texts, a file of captions
        and ``side="texts"`` no images.

    Raises:
        FileNotFoundError: If ``path`` does not exist.
        ValueError: If it cannot be read as the format says, lacks a column or the side asked for, or is empty.
    """
    path = Path(config.path)
    kind = _format(path, config.format)
    if config.split is not None and kind not in ("karpathy", "hf"):
        raise ValueError(
            f"{path}: split={config.split} is for Karpathy's JSON and for hf, this is read as {kind}; leave it out"
        )
    if kind == "folder":
        dataset = RetrievalDataset(config.path, list_images(path), [], [])
    elif kind == "captions":
        dataset = RetrievalDataset(config.path, [], read_captions(path), [])
    else:
        dataset = _read_pairs(path, kind, config)
    wanted = {"both": dataset.images or dataset.texts, "images": dataset.images, "texts": dataset.texts}[config.side]
    if not wanted:
        what = {"both": "images or captions", "images": "images", "texts": "captions"}[config.side]
        advice = "; for shards in it give format=webdataset" if kind == "folder" else ""
        raise ValueError(f"{path} has no {what}, read as {kind}{advice}")
    return dataset


def _format(path: Path, format: str) -> str:
    if format == "auto" and path.is_dir():
        format = "hf" if is_saved(path) else "folder"
    elif format == "auto":
        format = _FORMAT_OF_SUFFIX.get(path.suffix.lower(), "auto")
    if format == "webdataset":
        return format
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if format == "auto":
        raise ValueError(f"{path}: the suffix does not tell the format; give format={'|'.join(_FORMATS[1:])}")
    if path.is_dir() != (format in ("folder", "hf")):
        raise ValueError(f"{path} is a {'folder' if path.is_dir() else 'file'}, not what format={format} reads")
    return format


def _read_pairs(path: Path, kind: str, config: DataConfig) -> RetrievalDataset:
    side = config.side
    pairs: Iterable[tuple[str | StoredImage, str]]
    if kind == "webdataset":
        pairs = read_webdataset(config.path, config.text_column, side)
    elif kind == "hf":
        pairs = read_saved(path, config.split, config.image_column, config.text_column, side)
    elif kind == "karpathy":
        pairs = read_karpathy(path, config.split)
    else:
        # Only the columns of the side: unlabelled images need no captions in their table.
        columns = {
            "both": (config.image_column, config.text_column),
            "images": (config.image_column,),
            "texts": (config.text_column,),
        }[side]
        rows = read_csv(path, columns, config.separator) if kind == "csv" else read_jsonl(path, columns)
        pairs = ((row[0] if side != "texts" else "", row[-1] if side != "images" else "") for row in rows)
    name = config.path
    if side == "texts":
        return RetrievalDataset(name, [], [text for _, text in pairs], [])
    root = Path(config.images or (path if path.is_dir() else path.parent))
    located = ((str(root / image) if isinstance(image, str) else image, text) for image, text in pairs)
    dataset = RetrievalDataset.from_pairs(name, located)
    return dataset if side == "both" else RetrievalDataset(name, dataset.images, [], [])
