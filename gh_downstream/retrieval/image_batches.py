"""Images as an encoder takes them, read in batches, with those that cannot be read told apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

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
    return DataLoader(_Images(images, encoder), batch_size, num_workers=workers, collate_fn=_collate)


def image_or_fault(image: str | StoredImage) -> Image | str:
    """Return an image, or what is wrong with it."""
    try:
        return open_image(image)
    except (FileNotFoundError, ValueError) as error:
        return str(error)


class _Images(Dataset):
    def __init__(self, images: Sequence[str | StoredImage], encoder: DualEncoder) -> None:
        self.images, self.encoder = images, encoder

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        image = image_or_fault(self.images[index])
        return index, image if isinstance(image, str) else self.encoder.preprocess(image, False)


def _collate(samples: Sequence[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor, dict[int, str]]:
    # One tensor for all: each that comes from a worker takes an open file.
    read = {index: pixels for index, pixels in samples if isinstance(pixels, Tensor)}
    faults = {index: fault for index, fault in samples if isinstance(fault, str)}
    return list(read), torch.stack(list(read.values())) if read else torch.empty(0), faults
