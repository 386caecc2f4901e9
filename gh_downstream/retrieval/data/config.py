"""Where images and captions are."""

from dataclasses import dataclass
from pathlib import Path

from gh_downstream.data.paths import path_in

FORMATS = {
    "csv": (".csv", ".tsv"),
    "jsonl": (".jsonl", ".ndjson"),
    "karpathy": (".json",),
    "webdataset": (".tar",),
    "hf": (),
    "folder": (),
    "captions": (".txt",),
}
"""The formats, and the suffixes of files by which ``auto`` finds them."""

SIDES = {"both": "images or captions", "images": "images", "texts": "captions"}
"""The sides that can be read, and what they are called in messages."""


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
        outside_root: Allow JSON and JSON lines, which come from others, to name images that are not in ``images``, as a
            CSV and what ``save_to_disk`` wrote may.
    """

    path: str
    format: str = "auto"
    images: str | None = None
    image_column: str = "image"
    text_column: str = "caption"
    separator: str | None = None
    split: str | None = None
    side: str = "both"
    outside_root: bool = False

    def __post_init__(self) -> None:
        for name, value, choices in (("format", self.format, ("auto", *FORMATS)), ("side", self.side, SIDES)):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
        if self.separator is not None and len(self.separator) != 1:
            raise ValueError(f"separator must be one character, got {self.separator!r}; leave it out to have it found")

    @property
    def columns(self) -> list[str]:
        """The columns that are read: unlabelled images need no captions in their table."""
        both = [self.image_column, self.text_column]
        return {"both": both, "images": both[:1], "texts": both[1:]}[self.side]

    def located(self, image: str) -> str:
        """Return the path of an image; a ``ValueError`` if it is not where images may be."""
        path = Path(self.path)
        folder = self.images or (path if path.is_dir() else path.parent)
        own = self.format in ("csv", "hf") or path.is_dir() or path.suffix.lower() in FORMATS["csv"]
        return path_in(folder, image, own or self.outside_root, self.path)
