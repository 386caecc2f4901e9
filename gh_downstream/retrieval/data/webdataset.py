"""webdataset shards: tar files in which the members of a sample have one name and different suffixes.

The shards are indexed once, and an image is read at its place in them: any sample may come at any step, and they are
never read from front to back.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gh_downstream.data.images import SUFFIXES
from gh_downstream.retrieval.data.columns import checked_text, combinations, find_columns

_SHARDS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_BLOCK = 512  # what a tar is made of


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image in an uncompressed tar.

    Args:
        file: Path of the tar.
        name: Name of the member.
        offset: Place of its first byte in the tar.
        size: Number of its bytes.
    """

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


def read_webdataset(path: str, text_column: str, side: str) -> Iterator[tuple[TarMember | str, str]]:
    """Read images and captions of shards.

    A sample has one image. Its caption, or a list of captions, is in ``.json`` under ``text_column``, or else one is in
    ``.txt``. Other members, and hidden ones, are left alone.

    Args:
        path: An uncompressed tar, a folder of them, or a pattern such as ``shards/{000..010}.tar``.
        text_column: Key of the caption in JSON.
        side: ``both``, ``images`` or ``texts``.

    Yields:
        Image and one of its captions; an empty text for what the side leaves out.

    Raises:
        FileNotFoundError: If a shard does not exist.
        ValueError: If a shard is compressed, cut off or no tar, or a sample lacks what is asked for.
    """
    for shard in find_shards(path):
        try:
            with tarfile.open(shard, "r:") as tar:
                yield from _read_shard(tar, shard, text_column, side)
        except tarfile.TarError as error:
            raise ValueError(
                f"{shard} is not a whole and uncompressed tar ({error}): images are read at their place in it; "
                "decompress it, or get it again"
            ) from error


def find_shards(path: str) -> list[Path]:
    """The shards that a path means; arguments and errors as in :func:`read_webdataset`."""
    if not Path(path).is_dir():
        shards = [Path(path)] if Path(path).exists() else [Path(name) for name in _expanded(path)]
    else:
        shards = [shard for shard in sorted(Path(path).iterdir()) if shard.name.endswith(_SHARDS)]
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


def _read_shard(
    tar: tarfile.TarFile, shard: Path, text_column: str, side: str
) -> Iterator[tuple[TarMember | str, str]]:
    for key, members in _samples(tar, shard).items():
        where = f"{shard}, sample {key}"
        images = [member for suffix, member in members.items() if suffix in SUFFIXES]
        if not images and not {".json", ".txt"} & members.keys():
            continue
        image: TarMember | str = ""
        if side != "texts":
            if len(images) != 1:
                raise ValueError(f"{where}: one image was expected among its members {', '.join(members)}")
            image = TarMember(str(shard), images[0].name, images[0].offset_data, images[0].size)
        for text in _captions(tar, members, text_column, where) if side != "images" else [""]:
            yield image, text


def _samples(tar: tarfile.TarFile, shard: Path) -> dict[str, dict[str, tarfile.TarInfo]]:
    """The members of each sample by suffix, which begins at the first dot of the name."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in tar:
        folder, slash, file = member.name.rpartition("/")
        stem, dot, suffix = file.partition(".")
        if member.isreg() and stem:
            members = samples.setdefault(folder + slash + stem, {})
            if members.setdefault(dot + suffix.lower(), member) is not member:
                raise ValueError(f"{shard}: two members are named {member.name}")
    # A tar ends with a block of zeros; without it tarfile takes one that was cut off between members for whole.
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(_BLOCK) != bytes(_BLOCK):
        raise tarfile.ReadError("it was cut off")
    return samples


def _captions(
    tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], text_column: str, where: str
) -> Iterator[str]:
    def content(suffix: str) -> str:
        file = tar.extractfile(members[suffix])
        assert file is not None  # a regular member
        try:
            return file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: its {suffix} is not UTF-8 ({error})") from error

    if ".json" in members:
        try:
            row = json.loads(content(".json"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not readable JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f'{where}: a JSON object was expected, such as {{"{text_column}": ...}}')
        if text_column in row or ".txt" not in members:
            find_columns(list(row), [text_column], where)
            yield from (text for (text,) in combinations(row, [text_column], where))
            return
    if ".txt" not in members:
        raise ValueError(f"{where}: a caption was expected in .txt or .json among its members {', '.join(members)}")
    yield checked_text(content(".txt"), ".txt", where)
