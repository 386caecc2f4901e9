"""Is a tree of Cityscapes and Foggy Cityscapes whole? Asked before a training of many hours finds out."""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gh_downstream.data.generated import MANIFEST
from gh_downstream.data.images import open_image
from gh_downstream.detection.data.cityscapes import ANNOTATION_SUFFIXES, ARCHIVES, expected_images, image_suffix
from gh_downstream.detection.data.fog import FOG_DENSITIES
from gh_downstream.detection.data.records import readable
from gh_downstream.reporting import Table

SPLITS = ("train", "val")
_NAMED = 3  # files that are named before the others are counted


class _Kind(NamedTuple):
    name: str
    folder: str
    required: bool
    suffixes: tuple[str, ...]  # of the file of a frame; any of them will do


_KINDS = (
    _Kind("leftImg8bit", "leftImg8bit", True, (image_suffix(None),)),
    *(_Kind(f"leftImg8bit_foggy {beta:g}", "leftImg8bit_foggy", True, (image_suffix(beta),)) for beta in FOG_DENSITIES),
    _Kind("gtFine", "gtFine", True, ANNOTATION_SUFFIXES),
    _Kind("disparity", "disparity", False, ("_disparity.png",)),
    _Kind("camera", "camera", False, ("_camera.json",)),
)


@dataclass(frozen=True)
class Part:
    """What is there of one kind of file of one split.

    Attributes:
        name: Name of the folder, with the density of the fog where it has one.
        folder: Folder in the root.
        required: Whether training and evaluation need it; making fog alone needs disparity and camera.
        split: Name of the split.
        found: Number of frames that have this file.
        expected: Number of frames that should.
        missing: The files that are missing, as far as other folders tell that their frames exist.
        damaged: What is wrong with each file that cannot be read; ``None`` where no file was opened.
    """

    name: str
    folder: str
    required: bool
    split: str
    found: int
    expected: int
    missing: list[Path]
    damaged: list[str] | None

    @property
    def lacking(self) -> int:
        """Number of files that are missing, known by name or not."""
        return max(self.expected - self.found, len(self.missing))

    @property
    def whole(self) -> bool:
        """Whether no file is missing or known to be damaged."""
        return not self.lacking and not self.damaged


def check_cityscapes(root: str | Path, read: bool = False) -> list[Part]:
    """Count the files of each kind, fog at each density being one, in each of training and validation of Cityscapes.

    Args:
        root: Folder that holds ``leftImg8bit`` and the others.
        read: Open every file too, and find the damaged ones; an image that was cut off is one.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If its manifest cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is not a folder; make it, and unpack the archives of cityscapes-dataset.com in it"
        )
    parts = {}
    for split in SPLITS:
        _, expected = expected_images(root, split)
        assert expected is not None  # known for these splits
        files = {kind: _files(root / kind.folder / split, kind.suffixes) for kind in _KINDS}
        frames = {frame for kind, found in files.items() if kind.required for frame in found}
        for kind, found in files.items():
            missing = [
                root / kind.folder / split / city / f"{frame}{kind.suffixes[0]}"
                for city, frame in sorted(frames - found.keys())
            ]
            damaged = _damaged(found.values()) if read else None
            parts[kind, split] = Part(*kind[:3], split, len(found), expected, missing, damaged)
    return [parts[kind, split] for kind in _KINDS for split in SPLITS]


def check_table(root: str | Path, parts: Sequence[Part]) -> Table:
    """The table of what :func:`check_cityscapes` found in a folder, with what to do about it below."""
    root = Path(root)
    name, _ = expected_images(root, parts[0].split)
    published = not (root / MANIFEST).is_file()
    rows = {
        "files": [part.name if part.required else f"{part.name} (optional)" for part in parts],
        "split": [part.split for part in parts],
        "found": [part.found for part in parts],
        "expected": [part.expected for part in parts],
        "missing": [part.lacking for part in parts],
    }
    if any(part.damaged is not None for part in parts):
        rows["damaged"] = [len(part.damaged or []) for part in parts]
    if published and not all(part.whole for part in parts):
        rows["archive"] = ["" if part.whole else ARCHIVES[part.folder] for part in parts]
    notes = [*_problems(root, parts), *_misplaced(root, parts), *_advice(root, parts, published)]
    return Table(f"{name} in {root}", list(rows), list(zip(*rows.values(), strict=True)), notes=notes)


def _problems(root: Path, parts: Sequence[Part]) -> Iterator[str]:
    """What is wrong in each part; the first files of a kind by their names."""
    for part in parts:
        if part.found:  # where there is none, the table says enough
            missing = [f"missing: {path.relative_to(root)}" for path in part.missing]
            yield from _first(missing, f"files missing in {part.name} {part.split}")
        yield from _first(part.damaged or [], f"files damaged in {part.name} {part.split}")
        if part.found > part.expected:
            more = part.found - part.expected
            yield f"{part.name} {part.split} has {more} more than it should: results on it are not comparable"


def _first(lines: Sequence[str], others: str) -> Iterator[str]:
    yield from lines[:_NAMED]
    if len(lines) > _NAMED:
        yield f"and {len(lines) - _NAMED} more {others}"


def _misplaced(root: Path, parts: Sequence[Part]) -> Iterator[str]:
    """Folders that are not in the root, but one level below it, where unpacking by hand may leave them."""
    places: dict[Path, list[str]] = {}
    for folder in ARCHIVES:
        if not any(part.found for part in parts if part.folder == folder):
            for path in sorted(root.glob(f"*/{folder}")):
                places.setdefault(path.parent, []).append(folder)
    for place, folders in places.items():
        yield f"{place} holds {', '.join(folders)}: check that folder instead, or move these to {root}"


def _advice(root: Path, parts: Sequence[Part], published: bool) -> Iterator[str]:
    """The verdict, and what to do."""
    broken = {part.folder for part in parts if not part.whole}
    needed = dict.fromkeys(part.folder for part in parts if part.required and not part.whole)
    if not needed:
        yield "complete: all that training and evaluation need is there"
    elif published:
        archives = ", ".join(ARCHIVES[folder] for folder in needed)
        yield f"incomplete: unpack {archives} (cityscapes-dataset.com) in {root}"
    else:
        yield (
            f"incomplete: by its {MANIFEST} this tree is not Cityscapes itself; delete what is damaged, and make it "
            "again (gh-downstream data make streets adds what is missing to a tree of its own)"
        )
    if "leftImg8bit_foggy" in needed and not broken & {"leftImg8bit", "disparity", "camera"}:
        yield f"fog can also be made from disparity and camera: gh-downstream data fog {root}"


def _files(folder: Path, suffixes: Sequence[str]) -> dict[tuple[str, str], Path]:
    """The files of a split by city and frame; that of the first suffix, where a frame has several."""
    return {
        (path.parent.name, path.name.removesuffix(suffix)): path
        for suffix in reversed(suffixes)
        for path in folder.glob(f"*/*{suffix}")
    }


def _damaged(paths: Iterable[Path]) -> list[str]:
    """What is wrong with each file that is no image, or no JSON, from its first byte to its last."""
    with ThreadPoolExecutor() as pool:
        return [problem for problem in pool.map(_problem, sorted(paths)) if problem]


def _problem(path: Path) -> str:
    try:
        if path.suffix == ".png":
            open_image(path)
        else:
            with readable(path, "JSON file"):
                json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return str(error)
    return ""
