"""Text files of images and captions: CSV and TSV with a header, JSON lines, lines of captions."""

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gh_downstream.data.images import SUFFIXES
from gh_downstream.retrieval.data.config import DataConfig
from gh_downstream.retrieval.data.values import (
    Fault,
    Pair,
    Row,
    captions_of,
    check_columns,
    checked_object,
    image_file,
    json_value,
    table_pairs,
    utf8,
)

SEPARATORS = (",", "\t", ";", "|")
_OF_IMAGE = re.compile(rf"([^,\t;|]+(?:{'|'.join(map(re.escape, SUFFIXES))}))(?:#\d+)?\s*[,\t;|](.*)", re.IGNORECASE)
"""A line of a table without header: an image, perhaps with a number as in Flickr8k's, and a caption."""


def read_csv(path: Path, config: DataConfig) -> Iterator[Pair]:
    """Read a table with a header line, fields that hold the separator or a line break in double quotes.

    A row with more or fewer fields than the header is done without.

    Raises:
        ValueError: A column is missing, a value is none that can be read, or the file is not UTF-8.
    """
    with utf8(path), _table(path):
        yield from table_pairs(path, _csv_rows(path, config), config)


@contextmanager
def _table(path: Path) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:  # a field of 131 073 characters; in Python 3.10 a NUL too
        raise ValueError(f"{path} is not a readable table ({error})") from error


def _csv_rows(path: Path, config: DataConfig) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        rows = csv.reader(file, delimiter=config.separator or _sniff(header, config.columns))
        names = [name.strip() for name in next(rows, [])]
        check_columns(names, config.table_columns, path)
        before = rows.line_num
        for row in filter(None, rows):
            where, lines, before = f"{path}, line {rows.line_num}", rows.line_num - before, rows.line_num
            if len(row) == len(names):
                # Of several columns of a name the first counts.
                yield where, dict(zip(reversed(names), reversed(row), strict=True))
                continue
            fault = f"{where}: {len(row)} fields, the header has {len(names)}"
            if lines > 1:  # which may be most of the file
                raise ValueError(f"{fault}, over {lines} lines; close the double quotes that are opened before")
            yield where, Fault(f"{fault}; put fields that hold the separator in double quotes")


def read_jsonl(path: Path, config: DataConfig) -> Iterator[Pair]:
    """Read a file with a JSON object on each line; a caption is a text or a list of texts.

    Raises:
        ValueError: A line is not a JSON object, lacks a key, or a value is none that can be read.
    """
    with utf8(path), path.open(encoding="utf-8-sig") as file:
        places = ((f"{path}, line {number}", line) for number, line in enumerate(file, start=1) if line.strip())
        rows = ((where, checked_object(json_value(line, where), where)) for where, line in places)
        yield from table_pairs(path, rows, config)


def read_captions(path: Path, config: DataConfig) -> Iterator[Pair]:
    """Read the lines of a text file that are not empty; or a table in it, such as Flickr8k's ``captions.txt``.

    A table has a header with the columns, or names an image at the beginning of each line.

    Raises:
        ValueError: The file is not UTF-8; or as :func:`read_csv`.
    """
    with utf8(path):
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    found = {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
    first, *others = [*found.values(), ""]
    if not _OF_IMAGE.fullmatch(first):
        with _table(path):
            names = next(csv.reader([first], delimiter=_sniff(first, config.columns)), [])
        both = {config.image_column, config.text_column}
        if both <= {name.strip() for name in names} or _OF_IMAGE.fullmatch(others[0] if others else ""):
            yield from read_csv(path, config)
        else:
            yield from ((None, line) for line in found.values())
        return
    for number, line in found.items():
        where = f"{path}, line {number}"
        if (parts := _OF_IMAGE.fullmatch(line)) is None:
            yield None, Fault(f"{where}: no image at the beginning, {line[:80]!r}")
            continue
        image = None if config.side == "texts" else image_file(parts[1], config, where, "the line")
        for caption in captions_of(parts[2], "the line", where):
            yield image, caption


def _sniff(header: str, columns: Sequence[str]) -> str:
    """The separator under which the header has the columns, else the one that makes the most fields."""

    def fit(separator: str) -> tuple[bool, int]:
        names = next(csv.reader([header], delimiter=separator), [])
        return {*columns} <= {name.strip() for name in names}, len(names)

    return max(SEPARATORS, key=fit)
