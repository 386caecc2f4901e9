"""Contrastive loss of CLIP, with as many captions for an image as there are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def contrastive_loss(images: Tensor, texts: Tensor, positives: Tensor, logit_scale: Tensor) -> Tensor:
    r"""Cross-entropy between the similarities of a batch and who belongs to whom, in both directions.

    .. math::
        L = -\frac{1}{2N} \sum_{i=1}^N \frac{1}{|P_i|} \sum_{j \in P_i} \log \frac{e^{z_{ij}}}{\sum_k e^{z_{ik}}}
            -\frac{1}{2M} \sum_{j=1}^M \frac{1}{|Q_j|} \sum_{i \in Q_j} \log \frac{e^{z_{ij}}}{\sum_k e^{z_{kj}}},
        \qquad z_{ij} = e^s\, x_i \cdot y_j

    where :math:`P_i` are the texts of image :math:`i` and :math:`Q_j` the images of text :math:`j`. With one text for
    each image it is the loss of CLIP (Radford et al., ICML 2021, arXiv 2103.00020, figure 3); several share the target
    equally (Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv 2004.11362, equation 2).

    Args:
        images: Normalised features :math:`x` of shape ``[N, D]``.
        texts: Normalised features :math:`y` of shape ``[M, D]``.
        positives: Booleans of shape ``[N, M]``: whether a text belongs to an image, see :func:`positive_pairs`. An
            image without text adds 0, and so does a text without image; they are negatives to the others.
        logit_scale: Logarithm :math:`s` of the factor of the similarities, a scalar.

    Returns:
        Scalar, at least 0, in float32 or wider.
    """
    with torch.autocast(images.device.type, enabled=False):
        logits = logit_scale.exp() * images @ texts.T
        return 0.5 * (_cross_entropy(logits, positives) + _cross_entropy(logits.T, positives.T))


def _cross_entropy(logits: Tensor, positives: Tensor) -> Tensor:
    of_positives = log_softmax(logits, dim=1).masked_fill(~positives, 0.0).sum(dim=1)
    return -(of_positives / positives.sum(dim=1).clamp(min=1)).mean()


def positive_pairs(groups: Tensor, text_groups: Tensor) -> Tensor:
    """Tell which texts belong to which images.

    Args:
        groups: Id of each image, int64 of shape ``[N]``. Copies of an image have the same id.
        text_groups: Id of the image that each text belongs to, int64 of shape ``[M]``.

    Returns:
        Booleans of shape ``[N, M]``.
    """
    return groups[:, None] == text_groups
