"""Triplet loss of VSE++ on the hardest negatives of the batch, with as many captions for an image as there are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import relu


def triplet_loss(images: Tensor, texts: Tensor, positives: Tensor, margin: float) -> Tensor:
    r"""Hinge between each pair and its hardest negative of the batch, in both directions.

    .. math::
        L = \frac{1}{|P|} \sum_{(i, j) \in P} \Big( \max_{k \,:\, (i, k) \notin P} \big[\alpha + s_{ik} - s_{ij}\big]_+
            + \max_{k \,:\, (k, j) \notin P} \big[\alpha + s_{kj} - s_{ij}\big]_+ \Big),
        \qquad s_{ij} = x_i \cdot y_j

    over the pairs :math:`P` of an image and a text that belong together (Faghri et al., "VSE++: Improving
    Visual-Semantic Embeddings with Hard Negatives", BMVC 2018, arXiv 1707.05612, equation 6).

    Args:
        images: Normalised features :math:`x` of shape ``[N, D]``.
        texts: Normalised features :math:`y` of shape ``[M, D]``.
        positives: Booleans of shape ``[N, M]``: whether a text belongs to an image. What belongs together is no
            negative; an image, or a text, without a negative adds 0.
        margin: Margin :math:`\alpha` of the cosine similarities.

    Returns:
        Scalar, at least 0, in float32 or wider.
    """
    with torch.autocast(images.device.type, enabled=False):
        similarities = images @ texts.T
        negatives = similarities.masked_fill(positives, -torch.inf)
        hardest_text, hardest_image = negatives.amax(dim=1, keepdim=True), negatives.amax(dim=0)
        hinges = relu(margin + hardest_text - similarities) + relu(margin + hardest_image - similarities)
        return hinges.masked_fill(~positives, 0.0).sum() / positives.sum().clamp(min=1)
