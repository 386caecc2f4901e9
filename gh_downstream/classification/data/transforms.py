"""From an image to the tensor that a backbone takes."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, functional

from gh_downstream.harmonization.checks import check_one_of

_DIGIT = 28  # side of a digit in pixels, that of MNIST
RESIZED = 256  # side of a photo before the crop
CROP = 224  # side of the part of a photo that is looked at

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
    image: Image.Image,
    train: bool,
    generator: torch.Generator | None = None,
    *,
    statistics: str = "photos",
    crop: str = "random",
) -> Tensor:
    """Resized to 256x256, a crop of 224x224, normalized by mean and deviation; of shape ``[3, 224, 224]``.

    In training a horizontal flip is drawn, and the crop, as one of :data:`CROPS` says: a ``resized`` one has 8 to 100 %
    of the image, and another aspect. Otherwise it is the central one. The shape of the whole image is not kept, as in
    the published code of CDAN, GVB and their successors.

    Raises:
        ValueError: There is no generator to train with.
    """
    resized = functional.resize(image, [RESIZED, RESIZED])
    if train:
        if generator is None:
            raise ValueError("the transform 'photos' draws the crop and the flip of training: give it a generator")
        cropped = _cropped(resized, crop, generator)
        if torch.rand((), generator=generator) < 0.5:
            cropped = functional.hflip(cropped)
    else:
        cropped = functional.center_crop(resized, [CROP, CROP])
    return functional.normalize(functional.to_tensor(cropped), *PHOTO_STATISTICS[statistics])


def _cropped(image: Image.Image, crop: str, generator: torch.Generator) -> Image.Image:
    if crop == "center":
        return functional.center_crop(image, [CROP, CROP])
    if crop == "random":
        top, left = torch.randint(RESIZED - CROP + 1, (2,), generator=generator).tolist()
        return functional.crop(image, top, left, CROP, CROP)
    with torch.random.fork_rng(devices=[]):  # it draws from the global generator alone
        torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
        box = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
    return functional.resized_crop(image, *box, [CROP, CROP])


CROPS = ("random", "resized", "center")
"""What is cut out of a photo in training."""


def build_transform(name: str, crop: str = "random") -> Transform:
    """Return a transform by its name: :func:`digits`, or :func:`photos` with one of :data:`PHOTO_STATISTICS`.

    Raises:
        ValueError: There is none of this name, or no such crop.
    """
    check_one_of("transform", name, ("digits", *PHOTO_STATISTICS))
    check_one_of("crop", crop, CROPS)
    if name != "digits":
        return partial(photos, statistics=name, crop=crop)
    if crop != "random":
        raise ValueError(f"transform=digits crops nothing: leave crop={crop} out")
    return digits
