"""Folders of classes, for classification by texts that name them (CLIP, arXiv 2103.00020)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from gh_downstream.data.images import SUFFIXES, list_images
from gh_downstream.retrieval.data.config import TEMPLATES, DataConfig
from gh_downstream.retrieval.data.values import Pair, utf8


def read_classes(path: Path, config: DataConfig) -> Iterator[Pair]:
    """Read a folder that holds a folder for each class: its images, each with the name of its class.

    Raises:
        ValueError: There are fewer than two classes, one has no image, or there are not as many ``class_names``.
        FileNotFoundError: The file of these is not there.
    """
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(folders) < 2:
        raise ValueError(f"{path} has fewer than two folders; give the folder that holds the folders of the classes")
    names: Sequence[str] = [folder.name.replace("_", " ") for folder in folders]
    if config.class_names is not None:
        names = _class_names(config.class_names)
        if len(names) != len(folders):
            raise ValueError(f"{path} has {len(folders)} folders of classes, but {config.class_names} {len(names)}")
    for folder, name in zip(folders, names, strict=True):
        images = list_images(folder)
        if not images:
            raise ValueError(f"{folder} has no images ({', '.join(SUFFIXES)}); remove it, and its class")
        yield from ((image, name) for image in images)


def templates_of(config: DataConfig) -> list[str]:
    """Return the templates, those of open_clip's lists in the place of their names.

    Raises:
        ImportError: A list is asked for, and open_clip is not installed.
    """
    found: list[str] = []
    for template in config.templates or ["a photo of a {}."]:
        found += [fill("{}") for fill in _of_open_clip(TEMPLATES[template])] if template in TEMPLATES else [template]
    return found


def _class_names(source: str) -> Sequence[str]:
    if source == "imagenet":
        return _of_open_clip("IMAGENET_CLASSNAMES")
    with utf8(source):
        return [line.strip() for line in Path(source).read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _of_open_clip(name: str) -> Sequence:
    try:
        from open_clip import zero_shot_metadata
    except ImportError as error:
        raise ImportError(f"{name} is open_clip's: pip install 'gh_downstream[retrieval]'") from error
    return getattr(zero_shot_metadata, name)
