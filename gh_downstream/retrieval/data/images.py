"""Image files, read with an error that names the file."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from PIL import Image

_NOT_AN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises on a file that it cannot decode."""


def open_image(path: str) -> Image.Image:
    """Read an image as RGB, to its last pixel.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not a whole image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist") from error
    except _NOT_AN_IMAGE as error:
        raise ValueError(f"{path} is not a readable image ({error})") from error


def check_images(paths: Iterable[str]) -> None:
    """Decode every image.

    Raises:
        ValueError: If any is missing or not a whole image; the message has a line for each of them, up to 10.
    """
    faults = []
    for path in paths:
        try:
            open_image(path)
        except (FileNotFoundError, ValueError) as error:
            faults.append(str(error))
    if faults:
        shown = "\n".join(faults[:10] + [f"and {len(faults) - 10} more"] * (len(faults) > 10))
        raise ValueError(f"{len(faults)} images cannot be read; repair them, or remove them from the data:\n{shown}")
