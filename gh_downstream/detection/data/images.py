"""Image files: read with an error that names the file, written whole or not at all."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from gh_downstream.data.images import opened_image
from gh_downstream.files import atomic_file


def image_size(path: Path, remedy: str = "") -> tuple[int, int]:
    """Return height and width of an image in pixels, from its header, and notice a PNG that was cut off.

    Raises:
        FileNotFoundError: If the file does not exist; the message ends in what the user can do, the ``remedy``.
        ValueError: If it is not an image, or a PNG without an end.
    """
    with opened_image(path, remedy) as image:
        if image.format == "PNG":
            with path.open("rb") as file:
                file.seek(-min(64, path.stat().st_size), os.SEEK_END)
                if b"IEND" not in file.read():
                    raise ValueError("the file is cut off")
        return image.height, image.width


def read_rgb(path: Path, remedy: str = "") -> np.ndarray:
    """Read an image as uint8 RGB of shape ``[H, W, 3]``; errors as in :func:`image_size`."""
    with opened_image(path, remedy) as image:
        return np.array(image.convert("RGB"))


def read_uint16(path: Path, remedy: str = "") -> np.ndarray:
    """Read a single-channel 16-bit PNG as uint16 of shape ``[H, W]``; errors as in :func:`image_size`."""
    with opened_image(path, remedy) as image:
        if not image.mode.startswith("I"):
            raise ValueError(f"16-bit grey values were expected, its mode is {image.mode}")
        return np.asarray(image).astype(np.uint16)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 RGB ``[H, W, 3]`` or uint16 ``[H, W]`` pixels as a PNG, whole or not at all."""
    with atomic_file(path) as file:
        Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
