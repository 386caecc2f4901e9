"""The one way to write a file: its path holds either the old content or all of the new."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its place only when it is complete and on the disk.

    The temporary file beside it, ``.NAME.tmp``, has a fixed name: what a killed process leaves there is overwritten by
    the next one that writes the file.

    Args:
        path: File to write. Missing parent folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a whole file as :func:`atomic_file` does.

    Args:
        path: File to write. Missing parent folders are created.
        content: Text, written as UTF-8, or bytes.
    """
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
