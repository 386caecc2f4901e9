"""What the formats have in common: rows with named values, captions, splits, text in UTF-8."""

import ast
import io
import json
import math
import re
import tokenize
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as short
from typing import Any

from gh_downstream.data.images import StoredImage
from gh_downstream.data.paths import printable
from gh_downstream.data.skipped import listed
from gh_downstream.retrieval.data.config import DataConfig, is_url


class Fault(str):
    """What is wrong with a caption that is done without, in the place of the caption."""


Pair = tuple[str | StoredImage | None, str | None]
"""An image and one of its captions, or the :class:`Fault` of it; None for what is not there, or not to be read."""

Row = tuple[str, Mapping[str, Any] | Fault]
"""A row of a table, or what is wrong with it, and the place of it, for messages."""

_SHOWN = 80  # characters of a name in a message
_NOTHING = {"None", "nan", "NaN", "null", "NULL", "<NA>"}
"""What programs write for a value that is not there."""


def table_pairs(path: Path, rows: Iterable[Row], config: DataConfig) -> Iterator[Pair]:
    """Pair the images and captions of a table, of the splits that are asked for or of all rows.

    Raises:
        ValueError: A row lacks a column, a value is none that can be read, or a split is not in the table.
    """
    sizes: Counter[str] = Counter()
    for where, row in rows:
        if isinstance(row, Fault):
            yield None, row
            continue
        check_columns(row, config.table_columns, where)
        if config.split is not None:
            split = str(row[config.split_column])
            sizes[split] += 1
            if split not in config.split.split("+"):
                continue
        yield from pairs(row, config, where)
    if config.split is not None and sizes:
        chosen_splits(path, config.split, sizes, "rows")


def pairs(row: Mapping[str, Any], config: DataConfig, where: str) -> Iterator[Pair]:
    """Pair the image of a row, stored or a file that the row names, with each of its captions.

    Raises:
        ValueError: The image is no text, or a URL; or as :func:`captions_of`.
    """
    image = None
    if config.side != "texts":
        value = row[config.image_column]
        image = value if hasattr(value, "open") else image_file(value, config, where, config.image_column)
    if config.side == "images":
        yield image, None
    else:
        for caption in captions_of(row[config.text_column], config.text_column, where):
            yield image, caption


def image_file(name: Any, config: DataConfig, where: str, column: str) -> str:
    """Return the path of an image that a table or a JSON names, or raise ``ValueError``."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: a text was expected in {column!r}, got {short(name)}")
    if is_url(name.strip()):
        raise ValueError(f"{where}: {short(name)} is a URL; download the images first, and name the files")
    return config.located(name.strip(), where)


def captions_of(value: Any, column: str, where: str) -> list[str]:
    """Return the captions in a value: a text, a list, or a list in the writing of JSON or of Python.

    What is null, also in words, empty, no readable text, or the writing of something else comes as a :class:`Fault`.

    Raises:
        ValueError: The value, or one in the list, is something else, such as a number.
    """
    if isinstance(value, str) and (text := value.strip())[:1] + text[-1:] in ("[]", "()", "{}"):
        written = _written(text)
        captions = isinstance(written, list) and all(item is None or isinstance(item, str) for item in written)
        if not (re.match(r"\[\s*[\"']", text) is None if written is None else captions):
            return [Fault(f"{where}: {column!r} is no list of captions, {short(text)}; write it as JSON does")]
        value = text if written is None else written
    if value == []:
        return [Fault(f"{where}: the list {column!r} is empty")]
    return [_caption(item, column, where) for item in (value if isinstance(value, list) else [value])]


def _caption(value: Any, column: str, where: str) -> str:
    wrong = f"{where}: a text was expected in {column!r}, got {short(value)}"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Fault(wrong)
    if not isinstance(value, str):
        raise ValueError(wrong)
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can hold and no tokenizer reads
        return Fault(wrong)
    return Fault(wrong) if value.strip() in {"", *_NOTHING} else value.strip()


def _written(text: str) -> Any:
    """What a text in brackets is in the writing of JSON or Python; None if it is a text of its own."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        found = ast.literal_eval(text)
        texts = sum(token.type == tokenize.STRING for token in tokenize.generate_tokens(io.StringIO(text).readline))
    except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
        return None
    alone = isinstance(found, (list, tuple)) and all(isinstance(item, str) for item in found)
    if alone and texts != len(found):  # Python joins texts that have no comma between them, as in what NumPy writes.
        return None
    return [*found] if alone else found if isinstance(found, (list, dict, set)) else None


def check_columns(names: Collection[str], columns: Collection[str], where: Path | str) -> None:
    """Raise a ``ValueError`` that lists the columns there are if some are missing."""
    if not names:
        raise ValueError(f"{where} is empty: it has no columns")
    if missing := [column for column in columns if column not in names]:
        found = listed([repr(name)[:_SHOWN] for name in names], ", ")
        raise ValueError(
            f"{where}: no column {' or '.join(map(repr, missing))}; the columns are {found}; "
            "name yours with image_column and text_column"
        )


def chosen_splits(path: Path, split: str | None, sizes: Mapping[str, int], unit: str) -> list[str]:
    """Return the names in ``split``, joined by ``+``, or raise a ``ValueError`` that lists those there are."""
    chosen = (split or "").split("+")
    if not set(chosen) <= set(sizes):
        found = listed([f"{printable(name)[:_SHOWN]} ({size} {unit})" for name, size in sizes.items()], ", ")
        raise ValueError(f"{path}: split={split} is not in it; give one of {found}, or several joined by +")
    return chosen


def json_value(text: str, where: str) -> Any:
    """Return what a JSON text says, or raise ``ValueError``."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not readable JSON ({error})") from error


def checked_object(row: Any, where: str) -> dict[str, Any]:
    """Return what is a JSON object, or raise ``ValueError``."""
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
