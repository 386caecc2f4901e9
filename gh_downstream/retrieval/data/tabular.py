"""Tables of images and captions: CSV and TSV with a header, and JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gh_downstream.retrieval.data.columns import checked_text, combinations, find_columns

SEPARATORS = (",", "\t", ";", "|")


def read_csv(path: Path, columns: Sequence[str], separator: str | None = None) -> Iterator[tuple[str, ...]]:
    """Read columns of a table with a header line.

    Args:
        path: The table; UTF-8, fields that hold the separator or a line break in double quotes.
        columns: Names of the columns.
        separator: Character between the fields; by default that of ``SEPARATORS`` under which the header has the
            columns.

    Yields:
        The values of ``columns`` in each row.

    Raises:
        ValueError: If a column is missing, a row has more or fewer fields than the header, a field is empty, or the
            file is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            rows = csv.reader(file, delimiter=separator or _sniff(header, columns))
            names = next(rows, [])
            indices = find_columns(names, columns, path)
            for row in rows:
                if not row:
                    continue
                if len(row) != len(names):
                    raise ValueError(
                        f"{path}, line {rows.line_num}: {len(row)} fields, the header has {len(names)}; "
                        "put fields that hold the separator in double quotes"
                    )
                yield tuple(
                    checked_text(row[index], column, f"{path}, line {rows.line_num}")
                    for index, column in zip(indices, columns, strict=True)
                )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path} is not a readable table ({error})") from error


def read_jsonl(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Read keys of the objects in a file of JSON lines.

    Args:
        path: The file, with one JSON object on each line.
        columns: The keys. A value is a text or, as in data with several captions an image, a list of texts.

    Yields:
        For each object, and each text of a list, the values of ``columns``.

    Raises:
        ValueError: If a line is not a JSON object, lacks a key, or a value is neither a text nor a list of texts.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{where}: not readable JSON ({error})") from error
                if not isinstance(row, dict):
                    raise ValueError(f'{where}: a JSON object was expected, such as {{"image": ..., "caption": ...}}')
                find_columns(list(row), columns, where)
                yield from combinations(row, columns, where)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error


def _sniff(header: str, columns: Sequence[str]) -> str:
    """The separator under which the header has the columns, else the one that makes the most fields."""

    def fit(separator: str) -> tuple[bool, int]:
        names = next(csv.reader([header], delimiter=separator), [])
        return set(columns) <= set(names), len(names)

    return max(SEPARATORS, key=fit)
