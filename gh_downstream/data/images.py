"""Images, read with an error that names the file."""

import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from PIL import Image, UnidentifiedImageError

NOT_AN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises on a file that it cannot decode."""

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What counts as an image in a folder, in small or capital letters."""

_QUEUED = 4096  # images that wait for a thread at a time


class StoredImage(Protocol):
    """An image inside of another file, such as an archive: small, hashable and picklable.

    ``str()`` of it names the file and the place in it, for messages.
    """

    @property
    def file(self) -> str:
        """Path of a file that is written anew when the image changes."""
        ...

    def open(self) -> IO[bytes]:
        """Return the bytes of the image file.

        Raises:
            OSError: The file that it is stored in cannot be read.
            ValueError: There is no image in that place.
        """
        ...


@contextmanager
def opened_image(image: str | Path | StoredImage, remedy: str = "") -> Iterator[Image.Image]:
    """Open an image with Pillow, which reads the header, and decodes when the pixels are asked for.

    Args:
        image: Path of the image, or where it is stored.
        remedy: What the user can do about a missing or unreadable file; ends the error message.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not a whole image, or the body of the ``with`` statement finds a fault in it.
    """
    advice = f"; {remedy}" if remedy else ""
    try:
        with Image.open(image if isinstance(image, (str, Path)) else image.open()) as found:
            yield found
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{image} does not exist{advice}") from error
    except UnidentifiedImageError as error:  # Pillow's message names an object in memory.
        raise ValueError(f"{image} is not a readable image (of no known format){advice}") from error
    except NOT_AN_IMAGE as error:
        raise ValueError(f"{image} is not a readable image ({error}){advice}") from error


def open_image(image: str | Path | StoredImage) -> Image.Image:
    """Read an image as RGB, to its last pixel; errors as in :func:`opened_image`."""
    with opened_image(image) as found:
        return found.convert("RGB")


def list_images(folder: Path) -> list[str]:
    """Paths of the images in a folder and the folders in it, sorted; hidden files and folders are left out."""
    return [
        str(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]


def unreadable_images(images: Sequence[str | Path | StoredImage]) -> list[str]:
    """Decode every image, several at a time, and return what is wrong with those that are missing or not whole."""
    faults: list[str] = []
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(images), _QUEUED):
            faults += filter(None, pool.map(_fault, images[first : first + _QUEUED]))
    return faults


def _fault(image: str | Path | StoredImage) -> str:
    try:
        open_image(image)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return ""
