"""Data sets of Hugging Face's ``datasets``, as its ``save_to_disk`` writes them."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gh_downstream.retrieval.data.config import DataConfig
from gh_downstream.retrieval.data.values import Pair, check_columns, chosen_splits, pairs


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image in a row, counted from 0, of a saved data set."""

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


def read_saved(path: Path, config: DataConfig) -> Iterator[Pair]:
    """Read what ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote.

    The images are of the feature ``Image``, or texts, which name their files. Every row of encoded images is an image
    of its own; captions of one image belong into one row, as a list.

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
        sizes = {name: len(table) for name, table in found.items()}
        tables = {path / name: found[name] for name in chosen_splits(path, config.split, sizes, "rows")}
    elif config.split is not None:
        raise ValueError(f"{path} has no splits, so that split={config.split} is not in it; leave it out")
    else:
        tables = {path: found}
    for folder, table in tables.items():
        table = table.with_format(None)
        check_columns(table.column_names, config.columns, folder)
        encoded = config.side != "texts" and _has_images(table, folder, config.image_column)
        # Images that the table holds are not read.
        columns = [column for column in config.columns if not encoded or column != config.image_column]
        for number, row in enumerate(table.select_columns(columns) if columns else [{}] * len(table)):
            stored = ImageRow(str(folder), config.image_column, number) if encoded else None
            yield from pairs(row, config, f"{folder}, row {number}", stored)


def _has_images(table: Any, folder: Path, column: str) -> bool:
    """Whether a column holds images; otherwise it holds the names of their files."""
    from datasets import Image

    feature = table.features[column]
    if isinstance(feature, Image):
        return True
    if getattr(feature, "dtype", "") in ("string", "large_string"):
        return False
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
