"""The one way to write a file: its path holds either the old content or all of the new; and one writer to a folder."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)


@contextmanager
def atomic_file(path: str | Path, kept: str | Path | None = None) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its place only when it is complete and on the disk.

    The temporary file beside it, ``.NAME.tmp``, has a fixed name: what a killed process leaves there is overwritten by
    the next one that writes the file.

    Args:
        path: File to write. Missing parent folders are created.
        kept: Where the old file goes; None for nowhere.

    Raises:
        OSError: The disk is full, or something else stands against it; the old file is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if kept is not None and path.exists():
            os.replace(path, kept)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        # torch.save hides what the system said behind an error of its own.
        said = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(said, OSError) and said.errno is not None:
            said.filename = said.filename or str(path)
            raise said from None
        raise


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a whole file as :func:`atomic_file` does.

    Args:
        path: File to write. Missing parent folders are created.
        content: Text, written as UTF-8, or bytes.
    """
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def make_folder(folder: str | Path, key: str) -> None:
    """Make a folder to write to, if it is missing.

    Args:
        folder: Its path.
        key: What the user named it by.

    Raises:
        OSError: It cannot be made or written to; the message names the key.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{key} {folder}: no folder to write to ({error.strerror}); choose another") from None


def check_folder(folder: Path, key: str) -> None:
    """Check, as :func:`make_folder` and before the work, that results can be written to a folder; none is left."""
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        make_folder(folder, key)
    finally:
        for place in missing:
            with contextlib.suppress(OSError):  # it was not made, or another process has filled it
                place.rmdir()


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Keep a folder, which is made if it is missing, from other processes that ask for it by this function.

    What killed processes left of :func:`atomic_file` in it is removed. The lock is the system's, on the file
    ``.lock``: it ends with the process, however that ends, and worker processes do not inherit it.

    Raises:
        BlockingIOError: Another process has the folder.
    """
    import fcntl  # which Windows lacks

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which of them, depends on the system
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise BlockingIOError(
                f"{folder} is in use by another training, process {owner}: wait for it, or choose another output"
            ) from None
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s cannot be locked (%s): start no second training into it", folder, error.strerror)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        for left in folder.glob(".*.tmp"):
            left.unlink()
        yield


def _sync(folder: Path) -> None:
    """Bring to the disk which files a folder has."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
