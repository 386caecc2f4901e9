"""Where images and captions are."""

import re
from dataclasses import dataclass
from pathlib import Path

from gh_downstream.data.paths import path_in

FORMATS = {
    "csv": (".csv", ".tsv"),
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "coco": (),
    "karpathy": (),
    "parquet": (".parquet",),
    "webdataset": (".tar",),
    "hf": (),
    "folder": (),
    "classes": (),
    "captions": (".txt", ".token"),
}
"""The formats, and the suffixes of files by which ``auto`` finds them."""

TEMPLATES = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
"""Lists of templates that can be named, and what open_clip calls them."""

SIDES = {"both": "images or captions", "images": "images", "texts": "captions"}
"""The sides that can be read, and what they are called in messages."""


@dataclass
class DataConfig:
    """Where images and captions are, and how to read them.

    Attributes:
        path: The table, the JSON, the text file, the shards or the folder.
        format: ``csv`` (of any separator), ``jsonl``, ``json`` (an array of rows, ``coco`` or ``karpathy``, by what is
            in it), ``coco`` (``captions_*.json``), ``karpathy``, ``parquet``, ``webdataset`` (a tar, a folder of tars,
            or a pattern such as ``shards/{000..010}.tar``), ``hf`` (a folder that ``save_to_disk`` of Hugging Face's
            ``datasets`` wrote), ``folder`` (of images), ``classes`` (a folder for each class, of a validation set: its
            images are classified by texts), ``captions`` (a text file with one on each line, or a table as of
            Flickr8k), or ``auto``: by the suffix of ``path``, and for a folder ``hf`` or ``folder``.
        images: Folder that the names of images are relative to; by default that of ``path``, or ``path`` where it is
            one.
        image_column: Column, or key, of the image's file; for ``hf`` and ``parquet`` of the images or their files.
        text_column: Column, or key, of the caption or a list of captions, in a CSV in the writing of JSON or Python. In
            shards the key in ``.json``; samples without it have their caption in ``.txt``.
        separator: Separator of a CSV; found from the header by default.
        split: Split of Karpathy's JSON, of a ``DatasetDict`` or in ``split_column``, such as ``train+restval``.
        split_column: Column of a table that has the split of each row, read only where ``split`` is given.
        side: ``both``, or ``images`` or ``texts`` to leave the other unread.
        outside_root: Allow JSON and other files that come from others to name images that are not in ``images``, as a
            CSV and what ``save_to_disk`` wrote may.
        templates: Of ``classes``, the texts for a class, with ``{}`` for its name, whose normalised features are
            averaged; ``openai`` and ``simple`` stand for the 80 and the 7 that open_clip has for ImageNet. Null is
            ``a photo of a {}.``
        class_names: Of ``classes``, a file with the name of a class on each line, in the order of the sorted folders;
            ``imagenet`` for the 1000 of open_clip. Null takes the names of the folders, with spaces for underscores.
            Classes of one name are one.
    """

    path: str
    format: str = "auto"
    images: str | None = None
    image_column: str = "image"
    text_column: str = "caption"
    separator: str | None = None
    split: str | None = None
    split_column: str = "split"
    side: str = "both"
    outside_root: bool = False
    templates: list[str] | None = None
    class_names: str | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (("format", self.format, ("auto", *FORMATS)), ("side", self.side, SIDES)):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
        if self.separator is not None and len(self.separator) != 1:
            raise ValueError(f"separator must be one character, got {self.separator!r}; leave it out to have it found")
        for name in ("templates", "class_names"):
            if getattr(self, name) is not None and self.format != "classes":
                raise ValueError(f"{name} is for format=classes, a folder for each class; got format={self.format}")
        if self.templates == []:
            raise ValueError("templates is empty: leave it out for 'a photo of a {}.'")
        for template in self.templates or []:
            if "{}" not in template and template not in TEMPLATES:
                raise ValueError(
                    f"templates: {template!r} has no {{}} for the name of the class, nor is it one of "
                    + ", ".join(TEMPLATES)
                )
        for name, place in (("path", self.path), ("images", self.images)):
            if place is not None and is_url(place):
                raise ValueError(f"{name}: {place} is a URL; download it first, and name the file or folder")

    @property
    def columns(self) -> list[str]:
        """The columns that are read: unlabelled images need no captions in their table."""
        both = [self.image_column, self.text_column]
        return {"both": both, "images": both[:1], "texts": both[1:]}[self.side]

    @property
    def table_columns(self) -> list[str]:
        """The columns of a table that are read, that of the split included."""
        return self.columns + ([] if self.split is None else [self.split_column])

    def located(self, image: str, where: str) -> str:
        """Return the path of an image that a place names; a ``ValueError`` if it is not where images may be."""
        path = Path(self.path)
        folder = self.images or (path if path.is_dir() else path.parent)
        own = self.format in ("csv", "hf") or path.is_dir() or path.suffix.lower() in FORMATS["csv"]
        return path_in(folder, image, own or self.outside_root, where)


def is_url(name: str) -> bool:
    """Whether a path is the address of something elsewhere, such as ``https://…`` or ``s3://…``."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None
