"""Paths of files that data name: regular files, in the folder that they belong to, safe to print."""

import os
import stat
from pathlib import Path


def check_regular(path: str | Path) -> None:
    """Raise a ValueError where a path is a folder, a pipe, a socket or a device; opening a pipe would wait for ever.

    Raises:
        OSError: There is nothing, or it cannot be looked at.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")


def path_in(folder: str | Path, name: str, outside: bool, where: str) -> str:
    """Return the path of a file that a table or a JSON names, relative to a folder or in full.

    A file that comes from somebody else must not make any file of this machine a part of the data. Links in the folder
    are followed: they are the user's.

    Args:
        folder: Folder that relative names start from.
        name: What the file says.
        outside: Whether the path may leave the folder.
        where: The file and the place in it, for the message.

    Raises:
        ValueError: It leaves the folder, and may not.
    """
    path = str(Path(folder, name))
    if not outside:
        root, found = os.path.abspath(folder), os.path.abspath(path)
        if os.path.commonpath([root, found]) != root:
            raise ValueError(
                f"{where}: the image {name!r} is not in {folder}; if you trust the file, allow it with "
                "outside_root=true (DATASETS.OUTSIDE_ROOT True of Detectron2)"
            )
    return path


def printable(text: object) -> str:
    """Return a text with its control characters escaped: the name of a file must not command a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
