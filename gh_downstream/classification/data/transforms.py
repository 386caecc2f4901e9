"""From an image to the tensor that a backbone takes."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

_DIGIT = 28  # side of a digit in pixels, that of MNIST
_RESIZED = 256  # side of a photo before the crop
_CROP = 224  # side of the part of a photo that is looked at

PHOTO_STATISTICS = {
    "photos": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "photos-inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and deviation of red, green and blue that a transform of photos takes out: those of ImageNet, for ResNets; and a
half, from -1 to 1, for many vision transformers of timm, which calls them those of Inception."""


Transform = Callable[[Image.Image, bool, torch.Generator | None], Tensor]
"""Makes a tensor of an image in the mode RGB, of any size. ``train`` augments it with what the generator draws, on the
CPU, the global one being never used; otherwise the same image always gives the same tensor."""


def digits(image: Image.Image, train: bool, generator: torch.Generator | None = None) -> Tensor:
    """Grey, 28x28 (bilinear), in -1 to 1, of shape ``[1, 28, 28]``. Nothing is augmented."""
    grey = functional.resize(image.convert("L"), [_DIGIT, _DIGIT])
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
        top, left = torch.randint(_RESIZED - _CROP + 1, (2,), generator=generator).tolist()
        cropped = functional.crop(resized, top, left, _CROP, _CROP)
        if torch.rand((), generator=generator) < 0.5:
            cropped = functional.hflip(cropped)
    else:
        cropped = functional.center_crop(resized, [_CROP, _CROP])
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
