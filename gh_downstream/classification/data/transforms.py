"""From an image to the tensor that a backbone takes."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

DIGIT_SIZE = 28
"""Side of a digit in pixels, that of MNIST."""

PHOTO_SIZE = 224
"""Side of the part of a photo that is looked at, in pixels."""

_RESIZED = 256  # side of a photo before the crop

PHOTO_STATISTICS = {
    "photos": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "photos-inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and deviation of red, green and blue that a transform of photos takes out: those of ImageNet, for ResNets; and a
half, from -1 to 1, for many vision transformers of timm, which calls them those of Inception."""


class Transform(Protocol):
    """Turns an image into a tensor."""

    def __call__(self, image: Image.Image, train: bool, generator: torch.Generator | None = None) -> Tensor:
        """Return the tensor of an image.

        Args:
            image: Image in the mode RGB, of any size.
            train: Augment, with what ``generator`` draws; without it the same image always gives the same tensor.
            generator: Random numbers of the augmentation, on the CPU; the global generator is never used.
        """
        ...


def digits(image: Image.Image, train: bool, generator: torch.Generator | None = None) -> Tensor:
    """Grey, 28x28 (bilinear), in -1 to 1, of shape ``[1, 28, 28]``. Nothing is augmented."""
    grey = functional.resize(image.convert("L"), [DIGIT_SIZE, DIGIT_SIZE])
    # Not to_tensor: it takes three times as long, which shows beside a step of a small network.
    return torch.from_numpy(np.asarray(grey, np.float32) / 127.5 - 1)[None]


def photos(
    image: Image.Image, train: bool, generator: torch.Generator | None = None, *, statistics: str = "photos"
) -> Tensor:
    """Resized to 256x256, a crop of 224x224, normalized by mean and deviation; of shape ``[3, 224, 224]``.

    In training the place of the crop and a horizontal flip are drawn; otherwise the crop is the central one. The shape
    of the whole image is not kept, as in the published code of CDAN, GVB and their successors.

    Raises:
        ValueError: There is no generator to train with.
    """
    resized = functional.resize(image, [_RESIZED, _RESIZED])
    if train:
        if generator is None:
            raise ValueError("the transform 'photos' draws the crop and the flip of training: give it a generator")
        top, left = torch.randint(_RESIZED - PHOTO_SIZE + 1, (2,), generator=generator).tolist()
        cropped = functional.crop(resized, top, left, PHOTO_SIZE, PHOTO_SIZE)
        if torch.rand((), generator=generator) < 0.5:
            cropped = functional.hflip(cropped)
    else:
        cropped = functional.center_crop(resized, [PHOTO_SIZE, PHOTO_SIZE])
    return functional.normalize(functional.to_tensor(cropped), *PHOTO_STATISTICS[statistics])


_TRANSFORMS: dict[str, Transform] = {
    "digits": digits,
    **{name: partial(photos, statistics=name) for name in PHOTO_STATISTICS},
}


def build_transform(name: str) -> Transform:
    """Return a transform by its name: :func:`digits`, or :func:`photos` with one of :data:`PHOTO_STATISTICS`.

    Raises:
        ValueError: There is none of this name.
    """
    if name not in _TRANSFORMS:
        raise ValueError(f"transform must be one of {', '.join(_TRANSFORMS)}; got {name!r}")
    return _TRANSFORMS[name]
