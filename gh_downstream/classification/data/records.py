"""Images and their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gh_downstream.classification.data.transforms import Transform
from gh_downstream.data.images import open_image


@dataclass(frozen=True, eq=False)  # arrays have no equality that is true or false
class ClassificationDataset:
    """Images, the class of each, and the names of the classes.

    Args:
        name: Names the data in messages.
        images: Paths of images, or pixels as ``uint8`` of shape ``[H, W]`` or ``[H, W, 3]``.
        labels: For each image the index of its class; None where they are unknown, or must not be known.
        classes: Name of each class.
        features: What a frozen backbone makes of each image ``[N, D]``, and is looked at in its place; None for images.

    Raises:
        ValueError: There are not as many labels as images, or a label is not the index of a class.
    """

    name: str
    images: Sequence[str | np.ndarray]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    features: Tensor | None = None

    def __post_init__(self) -> None:
        if self.labels is None:
            return
        if len(self.labels) != len(self.images):
            raise ValueError(f"{self.name}: {len(self.images)} images, but {len(self.labels)} labels")
        for index, label in enumerate(self.labels):
            if not 0 <= label < len(self.classes):
                raise ValueError(
                    f"{self.file_name(index)} has the label {label}, outside 0 to {len(self.classes) - 1} "
                    f"of the {len(self.classes)} classes"
                )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_features(self) -> int | None:
        """Number of features of an image; None for images."""
        return None if self.features is None else self.features.shape[1]

    def image(self, index: int) -> Image.Image:
        """Return an image in the mode RGB.

        Raises:
            FileNotFoundError: Its file does not exist.
            ValueError: Its file is not a whole image.
        """
        image = self.images[index]
        return open_image(image) if isinstance(image, str) else Image.fromarray(image).convert("RGB")

    def tensor(self, index: int, transform: Transform, train: bool, generator: torch.Generator | None = None) -> Tensor:
        """Return what a network takes of an image: what the transform makes of it, or its features as they are."""
        return transform(self.image(index), train, generator) if self.features is None else self.features[index]

    def file_name(self, index: int) -> str:
        """Return the path of an image, or the name of the data and the index; for messages."""
        image = self.images[index]
        return image if isinstance(image, str) else f"{self.name}[{index}]"

    def unlabelled(self) -> ClassificationDataset:
        """Return the same images without their labels."""
        return replace(self, labels=None)
