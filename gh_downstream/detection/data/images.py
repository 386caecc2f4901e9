"""Image files as arrays: read with an error that names the file, written whole or not at all."""

from pathlib import Path

import numpy as np
from PIL import Image

from gh_downstream.data.images import open_image, opened_image
from gh_downstream.files import atomic_file


def read_rgb(path: str | Path, remedy: str = "") -> np.ndarray:
    """Read an image as uint8 RGB of shape ``[H, W, 3]``, as :func:`~gh_downstream.data.images.open_image` does."""
    return np.array(open_image(path, remedy))


def read_uint16(path: Path, remedy: str = "") -> np.ndarray:
    """Read a single-channel 16-bit PNG as uint16 of shape ``[H, W]``; errors as in :func:`read_rgb`."""
    with opened_image(path, remedy) as image:
        if not image.mode.startswith("I"):
            raise ValueError(f"16-bit grey values were expected, its mode is {image.mode}")
        return np.asarray(image).astype(np.uint16)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 RGB ``[H, W, 3]`` or uint16 ``[H, W]`` pixels as a PNG, whole or not at all."""
    with atomic_file(path) as file:
        Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
