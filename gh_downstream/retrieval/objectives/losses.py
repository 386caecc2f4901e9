"""The losses of the task, with as many captions for an image as there are.

All take normalised features of images :math:`x`, of shape ``[N, D]``, and of texts :math:`y`, of shape ``[M, D]``, and
``positives``, booleans of shape ``[N, M]`` that tell whether a text belongs to an image, as a tensor or as
:class:`PositivePairs`, which makes them where they are needed. All return a scalar of at least 0, in float32 or wider.

Similarities are computed some rows at a time: memory grows with the batch, not with its square. With ``distributed``
each process computes the rows of its own share, and all have the same features: the mean over the processes, of the
loss and of its gradient, is that of the whole batch, as after :func:`gather_with_gradient` in open_clip's
``local_loss``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, relu, softplus

from gh_downstream.adaptation.rows import chunks, sum_of_rows


@dataclass(frozen=True)
class PositivePairs:
    """The booleans of :func:`positive_pairs`, made for some rows at a time: ``pairs[start:stop]``.

    Args:
        groups: Ids of the images.
        text_groups: Ids of the texts.
        transposed: Whether rows are texts, and columns images.
    """

    groups: Tensor
    text_groups: Tensor
    transposed: bool = False

    @property
    def T(self) -> PositivePairs:  # noqa: N802
        """Which images belong to which texts, of shape ``[M, N]``."""
        return replace(self, transposed=not self.transposed)

    def __getitem__(self, rows: slice) -> Tensor:
        if self.transposed:
            return positive_pairs(self.groups, self.text_groups[rows]).T
        return positive_pairs(self.groups[rows], self.text_groups)


def positive_pairs(groups: Tensor, text_groups: Tensor) -> Tensor:
    """Tell which texts belong to which images.

    Args:
        groups: Id of each image, int64 of shape ``[N]``, or ids of what it belongs to, ``[N, K]``. Copies of an image
            have the same ids.
        text_groups: Id of what each text belongs to, an image or all images that share the text, int64 of shape
            ``[M]``.

    Returns:
        Booleans of shape ``[N, M]``.
    """
    positives = torch.zeros(len(groups), len(text_groups), dtype=torch.bool, device=groups.device)
    for ids in groups.reshape(len(groups), -1).T:  # one after the other: all at once would take K times the memory
        positives |= ids[:, None] == text_groups
    return positives


def contrastive_loss(
    images: Tensor,
    texts: Tensor,
    positives: Tensor | PositivePairs,
    logit_scale: Tensor,
    *,
    distributed: bool = False,
) -> Tensor:
    r"""CLIP's cross-entropy between the similarities of a batch and who belongs to whom, in both directions.

    .. math::
        L = -\frac{1}{2N} \sum_{i=1}^N \frac{1}{|P_i|} \sum_{j \in P_i} \log \frac{e^{z_{ij}}}{\sum_k e^{z_{ik}}}
            -\frac{1}{2M} \sum_{j=1}^M \frac{1}{|Q_j|} \sum_{i \in Q_j} \log \frac{e^{z_{ij}}}{\sum_k e^{z_{kj}}},
        \qquad z_{ij} = e^s\, x_i \cdot y_j

    where :math:`P_i` are the texts of image :math:`i` and :math:`Q_j` the images of text :math:`j`. With one text for
    each image it is the loss of CLIP (Radford et al., ICML 2021, arXiv 2103.00020, figure 3); several share the target
    equally (Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv 2004.11362, equation 2). An image
    without text adds 0, and so does a text without image; they are negatives to the others.

    Args:
        images: Features of shape ``[N, D]``.
        texts: Features of shape ``[M, D]``.
        positives: What belongs together.
        logit_scale: Logarithm :math:`s` of the factor of the similarities, a scalar.
        distributed: See the head of this module.
    """

    def entropy(positives: Tensor | PositivePairs, queries: Tensor, keys: Tensor) -> Tensor:
        def term(rows: slice, queries: Tensor, keys: Tensor, logit_scale: Tensor) -> Tensor:
            right = positives[rows]
            of_positives = log_softmax(logit_scale.exp() * queries[rows] @ keys.T, dim=1).masked_fill(~right, 0.0)
            return -(of_positives.sum(dim=1) / right.sum(dim=1).clamp(min=1)).sum()

        return sum_of_rows(term, len(queries), len(keys), [queries, keys, logit_scale], distributed) / len(queries)

    with torch.autocast(images.device.type, enabled=False):
        return 0.5 * (entropy(positives, images, texts) + entropy(positives.T, texts, images))


def sigmoid_loss(
    images: Tensor,
    texts: Tensor,
    positives: Tensor | PositivePairs,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    distributed: bool = False,
) -> Tensor:
    r"""SigLIP's binary cross-entropy of every pair of the batch, summed over the texts and averaged over the images.

    .. math:: L = \frac{1}{N} \sum_{i=1}^N \sum_{j=1}^M \log\big(1 + e^{-t_{ij} (e^s\, x_i \cdot y_j + b)}\big)

    with :math:`t_{ij} = 1` where text :math:`j` belongs to image :math:`i`, and -1 elsewhere; :math:`s` and :math:`b`
    are the scalars ``logit_scale`` and ``logit_bias`` (Zhai et al., "Sigmoid Loss for Language Image Pre-Training",
    ICCV 2023, arXiv 2303.15343, section 3.2).
    """

    def term(rows: slice, images: Tensor, texts: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
        logits = logit_scale.exp() * images[rows] @ texts.T + logit_bias
        return softplus(torch.where(positives[rows], -logits, logits)).sum()

    with torch.autocast(images.device.type, enabled=False):
        inputs = [images, texts, logit_scale, logit_bias]
        return sum_of_rows(term, len(images), len(texts), inputs, distributed) / len(images)


def triplet_loss(
    images: Tensor, texts: Tensor, positives: Tensor | PositivePairs, margin: float, *, distributed: bool = False
) -> Tensor:
    r"""VSE++'s hinge between each pair and its hardest negative of the batch, in both directions.

    .. math::
        L = \frac{1}{|P|} \sum_{(i, j) \in P} \Big( \max_{k \,:\, (i, k) \notin P} \big[\alpha + s_{ik} - s_{ij}\big]_+
            + \max_{k \,:\, (k, j) \notin P} \big[\alpha + s_{kj} - s_{ij}\big]_+ \Big),
        \qquad s_{ij} = x_i \cdot y_j

    over the pairs :math:`P` of an image and a text that belong together, with the margin :math:`\alpha` (Faghri et al.,
    "VSE++: Improving Visual-Semantic Embeddings with Hard Negatives", BMVC 2018, arXiv 1707.05612, equation 6). What
    belongs together is no negative; an image, or a text, without a negative adds 0.
    """

    def hinges(positives: Tensor | PositivePairs, queries: Tensor, keys: Tensor) -> Tensor:
        def term(rows: slice, queries: Tensor, keys: Tensor) -> Tensor:
            similarities, right = queries[rows] @ keys.T, positives[rows]
            hardest = similarities.masked_fill(right, -torch.inf).amax(dim=1, keepdim=True)
            return relu(margin + hardest - similarities).masked_fill(~right, 0.0).sum()

        return sum_of_rows(term, len(queries), len(keys), [queries, keys], distributed)

    with torch.autocast(images.device.type, enabled=False):
        pairs = torch.stack([positives[rows].sum() for rows in chunks(range(len(images)), len(texts))]).sum()
        return (hinges(positives, images, texts) + hinges(positives.T, texts, images)) / pairs.clamp(min=1)
