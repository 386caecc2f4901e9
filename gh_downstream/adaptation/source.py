"""Alignment that reaches a share of the source alone: another objective, whose gradient is cheaper to take apart."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Features = TypeVar("Features", Tensor, dict[str, Tensor])


def number_reached(count: int, share: float) -> int:
    """Return how many of ``count`` source images the gradient of the alignment reaches with a share; rounded up."""
    return math.ceil(share * count - 1e-9)  # 0.07 times 100 is 7.000000000000001


def check_whole_source(share: float) -> None:
    """Raise a ValueError where the features are harmonized, and the alignment sends a gradient to some of them only."""
    if share < 1:
        raise ValueError(
            f"harmonizing at the features needs all of them on both sides, but source_share is {share}: set it to 1, "
            "or harmonize at the parameters (harmonization.measure=parameters, GH.MEASURE parameters)"
        )


def encode_source(encode: Callable[[Tensor], Features], x: Tensor, share: float) -> tuple[Features, Features]:
    """Return the features of source images for the task, and the same for the alignment.

    The gradient of the alignment reaches the images of a share: the first ones, as a batch comes in random order.
    The features of the others are constants to it, which a discriminator learns from and no gradient goes beyond. With
    a share of 0 the target alone moves, towards a source that the task alone moves (as in Tzeng et al., "Adversarial
    Discriminative Domain Adaptation", CVPR 2017, arXiv 1702.05464, where the source stays). It is **another objective**
    than that of the alignment on all of the source, and not a cheaper form of it.

    The others go through ``encode`` by themselves, so that the alignment does not run backward through them; batch
    normalization sees both parts alone. Harmonizing then costs one more backward pass through the share.

    Args:
        encode: From images to features: a tensor, or several by name, with a row for each image.
        x: Images of the source, of shape ``[N, ...]``.
        share: In [0, 1]; with 1 both are the same, from one forward pass.
    """
    count = number_reached(len(x), share)
    if count == len(x):
        features = encode(x)
        return features, features
    constant = encode(x[count:])
    detached = _each(torch.Tensor.detach, constant)
    if count == 0:
        return constant, detached
    reached = encode(x[:count])
    return _each(_join, reached, constant), _each(_join, reached, detached)


def _join(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def _each(function: Callable[..., Tensor], *features: Features) -> Features:
    """What a function makes of tensors, or of those of one name in dictionaries."""
    first = features[0]
    if isinstance(first, Tensor):
        return function(*features)
    return {name: function(*(part[name] for part in features)) for name in first}
