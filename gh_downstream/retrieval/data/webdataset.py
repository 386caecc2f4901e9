"""webdataset shards: tar files in which the members of a sample have one name and different suffixes.

The shards are indexed once, and an image is read at its place in them: any sample may come at any step, and they are
never read from front to back.
"""

import io
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gh_downstream.data.images import SUFFIXES
from gh_downstream.data.paths import printable
from gh_downstream.retrieval.data.config import DataConfig
from gh_downstream.retrieval.data.values import (
    Fault,
    Pair,
    captions_of,
    check_columns,
    checked_object,
    json_value,
    utf8,
)

_SHARDS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_BLOCK = 512  # what a tar is made of


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image in an uncompressed tar: its path, the member, the place of its first byte in the tar, and the bytes."""

    file: str
    name: str
    offset: int
    size: int

    def open(self) -> io.BytesIO:
        """Return the bytes of the image file; errors as in :class:`~gh_downstream.data.images.StoredImage`."""
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))

    def __str__(self) -> str:
        return f"{self.file}, member {self.name}"


def read_webdataset(path: Path, config: DataConfig, each: Callable[..., Iterable[Any]] = map) -> Iterator[Pair]:
    """Read an uncompressed tar, a folder of them, or a pattern such as ``shards/{000..010}.tar``.

    ``each`` maps a function over the shards; another than ``map`` may share them between processes.

    A sample has one image. Its caption, or a list of captions, is in ``.json`` under ``text_column``, or else in
    ``.txt``. Members such as ``.input.jpg`` count where there is no ``.jpg`` alone. Other members, and hidden ones, are
    left alone; a sample of others alone is done without.

    Raises:
        FileNotFoundError: If a shard does not exist.
        ValueError: If a shard is compressed, cut off or no tar, or a sample lacks what is asked for.
    """
    for pairs in each(partial(_indexed, config), _shards(path)):
        yield from pairs


def _indexed(config: DataConfig, shard: Path) -> list[Pair]:
    try:
        with tarfile.open(shard, "r:") as tar:
            return [*_read_shard(tar, shard, config)]
    except tarfile.TarError as error:
        raise ValueError(
            f"{shard} is not a whole and uncompressed tar ({error}): images are read at their place in it; "
            "decompress it, or get it again"
        ) from error


def _shards(path: Path) -> list[Path]:
    """The shards that a path means."""
    if path.is_dir():
        shards = [shard for shard in sorted(path.iterdir()) if shard.name.endswith(_SHARDS)]
    else:
        shards = [path] if path.exists() else [Path(name) for name in _expanded(str(path))]
    if not shards:
        raise ValueError(f"{path} has no .tar, read as webdataset")
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"{shard} does not exist")
    return shards


def _expanded(pattern: str) -> list[str]:
    """The names that ranges such as ``{000..010}`` stand for; numbers as wide as the shell makes them."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    width = max(len(first), len(last)) if first.startswith("0") and len(first) > 1 else 0
    numbers = (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
    return [name for n in numbers for name in _expanded(pattern[: found.start()] + n + pattern[found.end() :])]


def _read_shard(tar: tarfile.TarFile, shard: Path, config: DataConfig) -> Iterator[Pair]:
    for key, members in _samples(tar, shard).items():
        where, names = f"{shard}, sample {printable(key)}", printable(", ".join(members))
        images, texts = _of_kind(members, SUFFIXES), _of_kind(members, (".txt",)) + _of_kind(members, (".json",))
        if not images and not texts:
            yield None, Fault(f"{where}: neither an image nor a caption among its members {names}")
            continue
        stored = None
        if config.side != "texts":
            if len(images) != 1:
                raise ValueError(f"{where}: one image was expected among its members {names}")
            image = members[images[0]]
            stored = TarMember(str(shard), image.name, image.offset_data, image.size)
        if config.side == "images":
            yield stored, None
        else:
            for caption in captions_of(*_caption(tar, members, config.text_column, where), where):
                yield stored, caption


def _of_kind(members: Mapping[str, tarfile.TarInfo], suffixes: Sequence[str]) -> list[str]:
    """The members with a suffix, or else those that have more before it, such as ``.input.jpg``."""
    plain = [name for name in members if name in suffixes]
    return plain or [name for name in members if name.endswith(tuple(suffixes))]


def _samples(tar: tarfile.TarFile, shard: Path) -> dict[str, dict[str, tarfile.TarInfo]]:
    """The members of each sample by suffix, which begins at the first dot of the name."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in tar:
        folder, slash, file = member.name.rpartition("/")
        stem, dot, suffix = file.partition(".")
        if member.isreg() and stem and dot:
            members = samples.setdefault(folder + slash + stem, {})
            if members.setdefault(dot + suffix.lower(), member) is not member:
                raise ValueError(f"{shard}: two members are named {printable(member.name)}")
    # A tar ends with a block of zeros; without it tarfile takes one that was cut off between members for whole.
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(_BLOCK) != bytes(_BLOCK):
        raise tarfile.ReadError("it was cut off")
    return samples


def _caption(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], column: str, where: str) -> tuple[Any, str]:
    """The caption or captions of a sample, and where in it they are."""

    def content(suffix: str) -> str:
        file = tar.extractfile(members[suffix])
        assert file is not None  # a regular member
        with utf8(f"{where}: its {printable(suffix)}"):
            return file.read().decode("utf-8-sig")

    texts, rows = _of_kind(members, (".txt",)), _of_kind(members, (".json",))
    if len(rows) == 1:
        row = checked_object(json_value(content(rows[0]), where), where)
        if column in row or not texts:
            check_columns(row, [column], where)
            return row[column], column
    if len(texts) != 1:
        raise ValueError(
            f"{where}: a caption was expected in .txt or .json among its members {printable(', '.join(members))}"
        )
    return content(texts[0]), texts[0]
