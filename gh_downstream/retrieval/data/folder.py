"""Unpaired data: a folder of images, a text file of captions."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What counts as an image in a folder, in small or capital letters."""


def list_images(folder: Path) -> list[str]:
    """Paths of the images in a folder and the folders in it, sorted.

    Hidden files and folders are left out.
    """
    return [
        str(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]


def read_captions(path: Path) -> list[str]:
    """Lines of a text file that are not empty.

    Raises:
        ValueError: If the file is not UTF-8.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
