"""Captions without images: a text file with one on each line."""

from __future__ import annotations

from pathlib import Path


def read_captions(path: Path) -> list[str]:
    """Lines of a text file that are not empty.

    Raises:
        ValueError: If the file is not UTF-8.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
