"""Images: the one way to read them, with an error that names the file.

Whatever a file holds becomes RGB of 8 bits, the same on every engine:

- Grey of 10 to 16 bits is scaled by the bit depth of the file. Floating-point values, 32-bit and signed integers have
  no range that is known, and are refused.
- Transparent pixels show white behind them, by their opacity. An opacity that is 0 all over, as some renderers write,
  says nothing, and the colours are taken as they are.
- The orientation in EXIF or XMP is applied, to the pixels and to the size; EXIF that cannot be read counts as none.
- Of an animation or a file of several pages the first image is taken; of CMYK in a JPEG Adobe's polarity, as Pillow and
  the browsers do.
- What is not a regular file is not opened, and an image of over 179 million pixels is refused, as Pillow does.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from gh_downstream.data.paths import check_regular, printable
from gh_downstream.data.skipped import listed

T = TypeVar("T")

NOT_AN_IMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, OverflowError),
    *(MemoryError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises on a file that it cannot decode."""

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
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
    name, advice = printable(image), f"; {remedy}" if remedy else ""
    try:
        if isinstance(image, (str, Path)):
            check_regular(image)
            if not os.path.getsize(image):
                raise ValueError("the file is empty")
        with Image.open(image if isinstance(image, (str, Path)) else image.open()) as found:
            yield found
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{os.path.abspath(name)} does not exist{advice}") from error
    except UnidentifiedImageError as error:  # Pillow's message names an object in memory.
        raise ValueError(f"{name} is not a readable image (of no known format){advice}") from error
    except NOT_AN_IMAGE as error:
        reason = getattr(error, "strerror", None) or error  # which for some has the name again
        raise ValueError(f"{name} is not a readable image ({printable(reason)}){advice}") from error


def open_image(image: str | Path | StoredImage, remedy: str = "") -> Image.Image:
    """Read an image as RGB, to its last pixel, as the head of this module says; errors as in :func:`opened_image`."""
    with opened_image(image, remedy) as found:
        bits = _bits(found)
        found.load()
        turned = _TURNED.get(_orientation(found))
        if bits > 8:
            found = _scaled(found, bits)
        if found.has_transparency_data:
            found = _on_white(found)
        rgb = found.convert("RGB")
        return rgb if turned is None else rgb.transpose(turned)


def image_size(image: str | Path | StoredImage, remedy: str = "") -> tuple[int, int]:
    """Return height and width in pixels of what :func:`open_image` reads, from the header.

    Raises:
        FileNotFoundError: If the file does not exist; the message ends in what the user can do, the ``remedy``.
        ValueError: If it is not an image, not one that is read, or a PNG without an end.
    """
    with opened_image(image, remedy) as found:
        _bits(found)
        # An orientation after the pixels of a PNG is known when they are read; those of a TIFF Pillow turns itself.
        if (found.format == "PNG" and _ends_with_metadata(found)) or (
            found.format == "TIFF" and _orientation(found) != 1
        ):
            found.load()
        height, width = found.height, found.width
        return (width, height) if _orientation(found) in _ON_SIDE else (height, width)


def _ends_with_metadata(png: Any) -> bool:
    """Whether EXIF or XMP may follow the pixels; a ValueError if the end is missing."""
    place = png.fp.tell()
    png.fp.seek(max(0, png.fp.seek(0, os.SEEK_END) - _TAIL))
    tail = png.fp.read()
    png.fp.seek(place)
    if b"IEND" not in tail[-64:]:
        raise ValueError("the file is cut off")
    return b"eXIf" in tail or b"adobe.xmp" in tail


def _bits(image: Image.Image) -> int:
    """Bits of a grey value before it is read, 8 where Pillow leaves no more; what has no known range is refused."""
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return 8
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
    bits, kind = tags.get(_BITS_PER_SAMPLE, (16,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0]
    if image.format in ("JPEG2000", "PNG", "PPM", "TIFF") and image.mode != "F" and bits <= 16 and kind == 1:
        return bits
    values = f"{'signed ' if kind == 2 else ''}integers of {bits} bits"
    if image.mode == "F":
        values = "floating-point numbers"
    raise ValueError(f"its values are {values}, of no known range; save it with 8 or 16 bits without a sign")


def _scaled(image: Image.Image, bits: int) -> Image.Image:
    """Grey of 8 bits, with an opacity where a grey value stands for transparent pixels."""
    values, largest = np.asarray(image), 2**bits - 1
    clear = image.info.get("transparency")
    tags: Any = getattr(image, "tag_v2", {})
    from_white = image.format == "TIFF" and tags.get(_PHOTOMETRIC) == 0
    grey = np.rint(np.minimum(values, largest) * (255 / largest)).astype(np.uint8)
    scaled = Image.fromarray(255 - grey if from_white else grey)
    if isinstance(clear, int):
        scaled.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return scaled


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    if image.getchannel("A").getbbox() is None:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _orientation(image: Image.Image) -> int:
    try:
        # Of a PNG without EXIF before the pixels, its own method would decode them.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # The pixels are whole; other readers do not look at what is broken here.
        return 1


_TAIL = 2**16  # bytes at the end of a PNG, where an orientation may be
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF
_ON_SIDE = (5, 6, 7, 8)  # orientations that exchange height and width
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets an image upright, by its orientation."""


def list_images(folder: Path) -> list[str]:
    """Paths of the images in a folder and the folders in it, sorted; hidden files and folders are left out.

    Links to folders are followed, each folder is read once. What has the suffix of an image and is none, such as a link
    to a file that is gone, is listed too: it is found when it is read, and not missed in silence.

    Raises:
        OSError: A folder may not be read.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [name for name in folders if not name.startswith(".") and real not in seen]
        if real not in seen:
            named = [Path(place, name) for name in files if not name.startswith(".")]
            found += [path for path in named if path.suffix.lower() in SUFFIXES]
        seen.add(real)
    return [*map(str, sorted(found))]


def _raise(error: OSError) -> None:
    raise error


def image_sizes(images: Sequence[str | Path], remedy: str = "") -> list[tuple[int, int]]:
    """Return the height and width of every image, several at a time; errors as in :func:`image_size`."""
    return list(_each(partial(image_size, remedy=remedy), images))


def unreadable_images(images: Sequence[str | Path | StoredImage], pixels: bool = True) -> list[str]:
    """Return what is wrong with each image that is missing or cannot be read; several are read at a time.

    Args:
        images: The images.
        pixels: ``False`` reads headers alone: it is fast, and finds what is missing or no image, but few of those that
            were cut off. Images in other files are left out then, as they were found there.
    """
    chosen = [image for image in images if pixels or isinstance(image, (str, Path))]
    return [*filter(None, _each(partial(_fault, open_image if pixels else image_size), chosen))]


def check_readable(images: Iterable[str | Path | StoredImage], pixels: bool = True) -> int:
    """Read every image once, or its header alone as in :func:`unreadable_images`, and return how many there are.

    Raises:
        ValueError: Some cannot be read; the message has a line for each of them, of headers for the first ones.
    """
    chosen = list(dict.fromkeys(images))
    if faults := unreadable_images(chosen, pixels):
        heading = f"{len(faults)} of {len(chosen)} images cannot be read; repair them, or remove them from the data:"
        raise ValueError("\n".join([heading, *faults] if pixels else [heading, listed(faults)]))
    return len(chosen)


def _fault(read: Callable[[Any], object], image: str | Path | StoredImage) -> str:
    try:
        read(image)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return ""


def _each(read: Callable[[Any], T], images: Sequence[str | Path | StoredImage]) -> Iterator[T]:
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(images), _QUEUED):
            yield from pool.map(read, images[first : first + _QUEUED])
