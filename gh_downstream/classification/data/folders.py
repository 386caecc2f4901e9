"""Images in files: a folder for each class, or a list of files and labels."""

import os
from collections import defaultdict
from pathlib import Path

from gh_downstream.classification.data.benchmarks import BENCHMARKS, check_benchmark
from gh_downstream.classification.data.records import ClassificationDataset
from gh_downstream.data.images import SUFFIXES, list_images

_MOST_CLASSES = 1_000_000


def load_folder(path: Path, benchmark: str | None = None, labels: bool = True) -> ClassificationDataset:
    """Find the images of a folder that holds a folder for each class; without ``labels``, of any folder.

    The classes are the names of those folders, sorted; hidden ones are left out. Images may lie deeper. ``benchmark``
    is the one of :data:`~gh_downstream.classification.data.benchmarks.BENCHMARKS` that it has to be.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: There are fewer than two classes, one has no image, or it is not the benchmark.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder")
    if not labels and benchmark is None:
        images = list_images(path)
        if not images:
            raise ValueError(f"{path} has no images ({', '.join(SUFFIXES)})")
        return ClassificationDataset(str(path), images, None, ())
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(folders) < 2:
        found = f"only the folder {folders[0].name}" if folders else "no folders"
        raise ValueError(f"{path} has {found}; give the folder that holds the folders of the classes")
    images, indices = [], []
    for label, folder in enumerate(folders):
        files = list_images(folder)
        if not files:
            raise ValueError(
                f"{folder} has no images ({', '.join(SUFFIXES)}); remove it, or leave the class empty in a list of "
                "files (format=list)"
            )
        images += files
        indices += [label] * len(files)
    classes = tuple(folder.name for folder in folders)
    if benchmark is not None:
        check_benchmark(benchmark, path, classes, len(images))
    return ClassificationDataset(str(path), images, tuple(indices), classes)


def load_list(path: Path, root: Path | None = None, benchmark: str | None = None) -> ClassificationDataset:
    """Read a list file: in each line the path of an image, a space and its label, from 0.

    The classes have the names of the folders that their images are in, where each class has one folder of its own;
    otherwise those of the benchmark, and without one their numbers.

    Args:
        path: The list, in UTF-8; empty lines are passed over, and a path may have spaces.
        root: What relative paths start from; by default the folder of the list.
        benchmark: As in :func:`load_folder`.

    Raises:
        FileNotFoundError: An image does not exist.
        ValueError: A line cannot be read, there is none, or it is not the benchmark.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, format=list reads a text file; for a folder give format=folder")
    root = path.parent if root is None else root
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    images, labels = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        image, *label = line.strip().rsplit(maxsplit=1)
        if not label or not label[0].isdecimal():
            raise ValueError(f"{path}, line {number} is {line.strip()!r}, expected a path, a space and a label from 0")
        if int(label[0]) >= _MOST_CLASSES:  # The classes up to it would be made.
            raise ValueError(f"{path}, line {number} has the label {label[0]}, above {_MOST_CLASSES - 1}")
        images.append(str(root / image))
        labels.append(int(label[0]))
    if not images:
        raise ValueError(f"{path} lists no images")
    names = BENCHMARKS[benchmark].classes if benchmark else tuple(map(str, range(max(labels) + 1)))
    if max(labels) >= len(names):
        raise ValueError(f"{path} has the label {max(labels)}, but {benchmark} has {len(names)} classes, from 0")
    classes = _folder_names(images, labels, names)
    if benchmark:
        check_benchmark(benchmark, path, {classes[label] for label in labels}, len(images))
    missing = [image for image in images if not os.path.exists(image)]
    if missing:
        raise FileNotFoundError(
            f"{path}: {missing[0]} does not exist ({len(missing)} of {len(images)} images); "
            f"relative paths start from {root}, give another folder with root=FOLDER"
        )
    return ClassificationDataset(str(path), images, tuple(labels), classes)


def _folder_names(images: list[str], labels: list[int], names: tuple[str, ...]) -> tuple[str, ...]:
    """``names``, with those of the folders in their place where each class has one folder of its own."""
    folders = defaultdict(set)
    for image, label in zip(images, labels, strict=True):
        folders[label].add(os.path.basename(os.path.dirname(image)))
    found = {label: next(iter(some)) for label, some in folders.items() if len(some) == 1}
    if len(found) < len(folders) or len(set(found.values())) < len(found):
        return names
    return tuple(found.get(label, name) for label, name in enumerate(names))
