"""Data sets of Hugging Face's ``datasets``, as its ``save_to_disk`` writes them, and files of parquet."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from gh_downstream.retrieval.data.config import DataConfig
from gh_downstream.retrieval.data.values import Pair, Row, check_columns, chosen_splits, table_pairs


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image in a row, counted from 0, of a saved data set or a file of parquet."""

    folder: str
    column: str
    row: int

    @property
    def file(self) -> str:
        """Path of what is written anew, whatever has changed."""
        return self.folder if Path(self.folder).is_file() else f"{self.folder}/state.json"

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
    found = _load(str(path))
    if isinstance(found, dict):
        sizes = {name: len(table) for name, table in found.items()}
        tables = {path / name: found[name] for name in chosen_splits(path, config.split, sizes, "rows")}
        config = replace(config, split=None)
    elif config.split is not None and config.split_column not in found.column_names:
        raise ValueError(f"{path} has no splits, so that split={config.split} is not in it; leave it out")
    else:
        tables = {path: found}
    for folder, table in tables.items():
        yield from table_pairs(folder, _rows(table, folder, config), config)


def read_parquet(path: Path, config: DataConfig) -> Iterator[Pair]:
    """Read a file of parquet, as :func:`read_saved` reads a data set without splits.

    Raises:
        ImportError: If ``datasets``, which keeps a copy in its cache, is not installed.
        ValueError: If the file is something else, or a column is missing or holds something else.
    """
    yield from table_pairs(path, _rows(_load(str(path)), path, config), config)


def _rows(table: Any, folder: Path, config: DataConfig) -> Iterator[Row]:
    table = table.with_format(None)
    check_columns(table.column_names, config.table_columns, folder)
    encoded = config.side != "texts" and _has_images(table, folder, config.image_column)
    # Images that the table holds are not read.
    columns = [column for column in config.table_columns if not encoded or column != config.image_column]
    for number, row in enumerate(table.select_columns(columns) if columns else ({} for _ in range(len(table)))):
        stored = {config.image_column: ImageRow(str(folder), config.image_column, number)} if encoded else {}
        yield f"{folder}, row {number}", row | stored


def _has_images(table: Any, folder: Path, column: str) -> bool:
    """Whether a column holds images; otherwise it holds the names of their files."""
    from datasets import Image

    feature = table.features[column]
    if isinstance(feature, Image) or (isinstance(feature, dict) and {*feature} == {"bytes", "path"}):
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


def _load(path: str) -> Any:
    file = Path(path).is_file()
    try:
        # The functions themselves: without the library, a folder `datasets` of data would pass for it.
        from datasets import Dataset, load_from_disk
    except ImportError as error:
        raise ImportError(
            f"format={'parquet' if file else 'hf'} needs the library datasets: pip install datasets"
        ) from error
    try:
        return Dataset.from_parquet(path) if file else load_from_disk(path)
    except Exception as error:  # A damaged file raises whatever its bytes happen to lead to.
        what = "a readable file of parquet" if file else "what save_to_disk of datasets writes"
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{path} is not {what} ({reason})") from error
