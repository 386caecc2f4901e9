"""Consistency of the image-level and the instance-level discriminator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def consistency_loss(
    image_probabilities: Tensor, region_probabilities: Tensor, regions_per_image: Sequence[int]
) -> Tensor:
    r"""Difference between what an image and each of its regions look like to the two discriminators.

    .. math:: L = \frac{1}{R} \sum_i \sum_{j=1}^{R_i} \Big| \frac{1}{|I_i|} \sum_{u,v} p_i^{(u,v)} - p_{i,j} \Big|

    the consistency regularization of Domain Adaptive Faster R-CNN (Chen et al., CVPR 2018, arXiv 1803.03243,
    section 4.2), as a mean over the :math:`R = \sum_i R_i` regions; the paper's 2-norm of a scalar is the absolute
    value. With several feature levels, the mean runs over the levels too. An image without regions adds nothing.

    Args:
        image_probabilities: Mean over the locations of each image's domain probability, of shape ``[N, L]``, with one
            column for each of ``L`` feature levels.
        region_probabilities: Domain probability of each region, of shape ``[R]``, the regions of the first image
            first.
        regions_per_image: The ``N`` numbers of regions :math:`R_i`, each at least 0.

    Returns:
        Scalar in [0, 1]; 0, with a gradient of 0, without any region.

    Raises:
        ValueError: The numbers of regions do not fit the shapes of the probabilities.
    """
    counts = list(regions_per_image)
    if image_probabilities.ndim != 2 or region_probabilities.ndim != 1:
        raise ValueError(
            "the consistency loss takes probabilities of shapes [N, L] of images and [R] of regions, got "
            f"{list(image_probabilities.shape)} and {list(region_probabilities.shape)}"
        )
    if len(counts) != len(image_probabilities) or sum(counts) != len(region_probabilities):
        raise ValueError(
            f"the consistency loss got {len(image_probabilities)} images and {len(region_probabilities)} regions, "
            f"but these numbers of regions per image: {counts}"
        )
    rows = zip(image_probabilities.split(1), counts, strict=True)
    expected = torch.cat([row.expand(count, -1) for row, count in rows]) if counts else image_probabilities
    difference = expected - region_probabilities[:, None]
    return difference.abs().sum() / max(difference.numel(), 1)
