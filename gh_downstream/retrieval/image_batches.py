"""Images as an encoder takes them, read in batches, with those that cannot be read told apart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader

from gh_downstream.data.images import StoredImage, open_image
from gh_downstream.retrieval.encoders import DualEncoder


def image_batches(
    encoder: DualEncoder, images: Sequence[str | StoredImage], workers: int, batch_size: int
) -> DataLoader[tuple[list[int], Tensor, dict[int, str]]]:
    """Read images and prepare them for evaluation.

    Args:
        encoder: Prepares the images.
        images: Paths of the images, or where in other files they are.
        workers: Processes that read images.
        batch_size: Images that are read at a time.

    Returns:
        Batches of the indices of the images that can be read, their pixels ``[N, 3, H, W]`` (of shape ``[0]`` where
        there are none), and what is wrong with the others by their index.
    """
    indices: Any = range(len(images))
    return DataLoader(indices, batch_size, num_workers=workers, collate_fn=partial(_read, encoder, images))


def image_or_fault(image: str | StoredImage) -> Image | str:
    """Return an image, or what is wrong with it."""
    try:
        return open_image(image)
    except (FileNotFoundError, ValueError) as error:
        return str(error)


def _read(
    encoder: DualEncoder, images: Sequence[str | StoredImage], indices: Sequence[int]
) -> tuple[list[int], Tensor, dict[int, str]]:
    found = {index: image_or_fault(images[index]) for index in indices}
    faults = {index: image for index, image in found.items() if isinstance(image, str)}
    read = {index: encoder.preprocess(image, False) for index, image in found.items() if not isinstance(image, str)}
    # One tensor for all: each that comes from a worker takes an open file.
    return list(read), torch.stack(list(read.values())) if read else torch.empty(0), faults
