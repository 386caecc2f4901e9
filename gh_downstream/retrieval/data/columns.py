"""Named values of a row, whatever it was read from: columns of a table, keys of a JSON object."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def find_columns(names: Sequence[str], columns: Collection[str], where: Path | str) -> list[int]:
    """Positions of columns among the names of all.

    Raises:
        ValueError: If one is missing; the message lists those there are.
    """
    missing = [column for column in columns if column not in names]
    if missing:
        found = ", ".join(map(repr, names)) or "none"
        raise ValueError(
            f"{where}: no column {' or '.join(map(repr, missing))}; the columns are {found}; "
            "name yours with image_column and text_column"
        )
    return [names.index(column) for column in columns]


def combinations(row: Mapping[str, Any], columns: Sequence[str], where: str) -> Iterator[tuple[str, ...]]:
    """Values of columns of a row, of which the last is a text or a list of texts: once for each of them.

    Raises:
        ValueError: If a value is neither a text nor, in the last column, a list of texts.
    """
    *before, last = columns
    start = tuple(checked_text(row[column], column, where) for column in before)
    values = row[last] if isinstance(row[last], list) else [row[last]]
    if not values:
        raise ValueError(f"{where}: the list {last!r} is empty")
    for value in values:
        yield (*start, checked_text(value, last, where))


def checked_text(value: Any, column: str, where: str) -> str:
    """The text of a column without space around it.

    Raises:
        ValueError: If it is something else, or empty.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: a text was expected in {column!r}, got {value!r}")
    return value.strip()
