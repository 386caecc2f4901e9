"""What the formats have in common: rows with named values, splits, text in UTF-8."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gh_downstream.data.images import StoredImage
from gh_downstream.retrieval.data.config import DataConfig

Pair = tuple[str | StoredImage | None, str | None]
"""An image and one of its captions; None for what is not there, or not to be read."""


def pairs(row: Mapping[str, Any], config: DataConfig, where: str, stored: StoredImage | None = None) -> Iterator[Pair]:
    """Pair the image of a row, ``stored`` or the file that the row names, with its caption or each of a list of them.

    Raises:
        ValueError: A value is neither a text nor, of captions, a list of texts.
    """
    image: str | StoredImage | None = stored
    captions: list[Any] = [None]
    if stored is None and config.side != "texts":
        image = config.located(checked_text(row[config.image_column], config.image_column, where))
    if config.side != "images":
        column = config.text_column
        values = row[column] if isinstance(row[column], list) else [row[column]]
        if not values:
            raise ValueError(f"{where}: the list {column!r} is empty")
        captions = [checked_text(value, column, where) for value in values]
    for caption in captions:
        yield image, caption


def checked_text(value: Any, column: str, where: str) -> str:
    """Return the text of a column without space around it, or raise ``ValueError``."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: a text was expected in {column!r}, got {value!r}")
    return value.strip()


def check_columns(names: Collection[str], columns: Collection[str], where: Path | str) -> None:
    """Raise a ``ValueError`` that lists the columns there are if some are missing."""
    if missing := [column for column in columns if column not in names]:
        raise ValueError(
            f"{where}: no column {' or '.join(map(repr, missing))}; the columns are "
            f"{', '.join(map(repr, names)) or 'none'}; name yours with image_column and text_column"
        )


def chosen_splits(path: Path, split: str | None, sizes: Mapping[str, int], unit: str) -> list[str]:
    """Return the names in ``split``, joined by ``+``, or raise a ``ValueError`` that lists those there are."""
    chosen = (split or "").split("+")
    if not set(chosen) <= set(sizes):
        found = ", ".join(f"{name} ({size} {unit})" for name, size in sizes.items())
        raise ValueError(f"{path}: split={split} is not in it; give one of {found}, or several joined by +")
    return chosen


def json_object(text: str, where: str) -> dict[str, Any]:
    """Return the object in a JSON text, or raise ``ValueError``."""
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not readable JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f'{where}: a JSON object was expected, such as {{"caption": ...}}')
    return row


@contextmanager
def utf8(what: Path | str) -> Iterator[None]:
    """Raise a ``ValueError`` that names what is being read where it is not UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8 ({error}); save it as UTF-8") from error
