"""Sigmoid loss of SigLIP, with as many captions for an image as there are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def sigmoid_loss(images: Tensor, texts: Tensor, positives: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    r"""Binary cross-entropy of every pair of the batch, summed over the texts and averaged over the images.

    .. math:: L = \frac{1}{N} \sum_{i=1}^N \sum_{j=1}^M \log\big(1 + e^{-t_{ij} (e^s\, x_i \cdot y_j + b)}\big)

    with :math:`t_{ij} = 1` where text :math:`j` belongs to image :math:`i`, and -1 elsewhere (Zhai et al., "Sigmoid
    Loss for Language Image Pre-Training", ICCV 2023, arXiv 2303.15343, section 3.2).

    Args:
        images: Normalised features :math:`x` of shape ``[N, D]``.
        texts: Normalised features :math:`y` of shape ``[M, D]``.
        positives: Booleans of shape ``[N, M]``: whether a text belongs to an image.
        logit_scale: Logarithm :math:`s` of the factor of the similarities, a scalar.
        logit_bias: Bias :math:`b`, a scalar.

    Returns:
        Scalar, at least 0, in float32 or wider.
    """
    with torch.autocast(images.device.type, enabled=False):
        logits = logit_scale.exp() * images @ texts.T + logit_bias
        return softplus(torch.where(positives, -logits, logits)).sum() / len(images)
