"""Data sets of Hugging Face's ``datasets``, as its ``save_to_disk`` writes them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gh_downstream.retrieval.data.columns import checked_text, combinations, find_columns


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image in a row of a saved data set.

    Args:
        folder: Folder of the data set.
        column: Column of the images.
        row: Number of the row, from 0.
    """

    folder: str
    column: str
    row: int

    @property
    def file(self) -> str:
        """Path of what :meth:`save_to_disk` writes anew, whatever has changed."""
        return f"{self.folder}/state.json"

    def open(self) -> io.BytesIO:
        """Return the bytes of the image file; errors as in :class:`~gh_downstream.data.images.StoredImage`."""
        value = _encoded_images(self.folder, self.column)[self.row][self.column]
        if value is None or value["bytes"] is None:
            raise ValueError("the row has none")
        return io.BytesIO(value["bytes"])

    def __str__(self) -> str:
        return f"{self.folder}, row {self.row}"


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` has written a folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def read_saved(
    path: Path, split: str | None, image_column: str, text_column: str, side: str
) -> Iterator[tuple[ImageRow | str, str]]:
    """Read images and captions of a saved data set.

    Every row of encoded images is an image of its own; captions of one image belong into one row, as a list.

    Args:
        path: What ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote.
        split: Name of the split of a ``DatasetDict``, or names joined by ``+``; None for a ``Dataset``.
        image_column: Column of the images, of the feature ``Image``, or of their files.
        text_column: Column of the captions, each a text or a list of texts.
        side: ``both``, ``images`` or ``texts``.

    Yields:
        Image, or the file that it is in, and one of its captions; an empty text for what the side leaves out.

    Raises:
        ImportError: If ``datasets`` is not installed.
        ValueError: If the folder is something else, ``split`` is missing or not in it, or a column is missing or holds
            something else.
    """
    try:
        found = _load(str(path))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is not what save_to_disk of datasets writes ({error})") from error
    if isinstance(found, dict):
        chosen = (split or "").split("+")
        if not set(chosen) <= set(found):
            there = ", ".join(f"{name} ({len(table)} rows)" for name, table in found.items())
            raise ValueError(f"{path}: split={split} is not in it; give one of {there}, or several joined by +")
        tables = {path / name: found[name] for name in chosen}
    elif split is not None:
        raise ValueError(f"{path} has no splits, so that split={split} is not in it; leave it out")
    else:
        tables = {path: found}

    for folder, table in tables.items():
        table = table.with_format(None)
        columns = {"both": [image_column, text_column], "images": [image_column], "texts": [text_column]}[side]
        find_columns(table.column_names, columns, folder)
        images = _images(table, folder, image_column) if side != "texts" else [""] * len(table)
        texts = table[text_column] if side != "images" else [""] * len(table)
        for number, (image, text) in enumerate(zip(images, texts, strict=True)):
            if side == "images":
                yield image, text
            else:
                row, where = {text_column: text}, f"{folder}, row {number}"
                yield from ((image, caption) for (caption,) in combinations(row, [text_column], where))


def _images(table: Any, folder: Path, column: str) -> list[ImageRow | str]:
    """Where the images of a table are; those that it holds are not read."""
    from datasets import Image

    feature = table.features[column]
    if isinstance(feature, Image):
        return [ImageRow(str(folder), column, number) for number in range(len(table))]
    if getattr(feature, "dtype", "") in ("string", "large_string"):
        return [checked_text(file, column, f"{folder}, row {number}") for number, file in enumerate(table[column])]
    raise ValueError(
        f"{folder}: {column!r} is {feature}, neither images nor their files; cast it before saving: "
        f"dataset.cast_column({column!r}, datasets.Image())"
    )


@lru_cache(maxsize=8)
def _encoded_images(folder: str, column: str) -> Any:
    """The column of a data set, mapped into memory: once in each process that reads images."""
    table = _load(folder).with_format(None).select_columns([column])
    from datasets import Image

    return table.cast_column(column, Image(decode=False))


def _load(folder: str) -> Any:
    try:
        # The function itself: without the library, a folder `datasets` of data would pass for it.
        from datasets import load_from_disk
    except ImportError as error:
        raise ImportError("format=hf needs the library datasets: pip install datasets") from error
    return load_from_disk(folder)
