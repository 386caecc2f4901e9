"""Conditional domain-adversarial networks."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gh_downstream.adaptation import domain_loss, scale_gradient
from gh_downstream.classification.backbones import Backbone
from gh_downstream.classification.methods.base import AdversarialOptions, Losses, Method
from gh_downstream.classification.methods.entropy import certainty, weighted_domain_loss
from gh_downstream.harmonization.checks import check_numbers

LONGEST_PRODUCT = 4096
"""Entries of the outer product above which random projections take its place (CDAN's randomized multilinear map)."""


@dataclass(kw_only=True)
class CDANOptions(AdversarialOptions):
    r"""Options of :class:`CDAN`.

    Attributes:
        entropy: Weigh the images by :math:`1 + e^{-H}`.
        random_features: Length :math:`d` of the random projections; null takes the outer product where it has at most
            4096 entries, and projections of length 1024 otherwise, as the paper does.
    """

    entropy: bool = True
    random_features: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, random_features=">= 1")


class CDAN(Method):
    r"""CDAN, and CDAN+E (Long et al., "Conditional Adversarial Domain Adaptation", NeurIPS 2018, arXiv 1705.10667).

    The discriminator sees the features :math:`f` conditioned on the predictions :math:`g`: their outer product
    :math:`f \otimes g` (the multilinear map), or, where that is too long, the product of random projections
    :math:`\frac{1}{\sqrt{d}} (R_f f) \odot (R_g g)` (the randomized one). With ``entropy`` images that the classifier
    is sure of count more (entropy conditioning). **task**: cross-entropy on the source. **alignment**: the
    discriminator's cross-entropy, through gradient reversal.

    Shared: the backbone, and with ``entropy`` the classifier, which the alignment reaches by the weights. The
    predictions pass no other gradient, as in the authors' code.
    """

    Options = CDANOptions
    takes_share = True
    feature_projection: Tensor
    prediction_projection: Tensor

    def __init__(self, backbone: Backbone, num_classes: int, options: CDANOptions) -> None:
        super().__init__(backbone, num_classes, options)
        self.shared = ("backbone", "classifier") if options.entropy else ("backbone",)
        sizes = (backbone.out_features, num_classes)
        random_features = options.random_features
        if random_features is None and sizes[0] * sizes[1] > LONGEST_PRODUCT:
            random_features = 1024
        self.random_features = random_features
        if random_features is not None:
            self.register_buffer("feature_projection", torch.randn(sizes[0], random_features))
            self.register_buffer("prediction_projection", torch.randn(sizes[1], random_features))
        self.discriminator = options.network(random_features or sizes[0] * sizes[1], 1)

    def condition(self, features: Tensor, predictions: Tensor) -> Tensor:
        """Return what the discriminator sees, ``[N, D K]`` or ``[N, d]``.

        Args:
            features: Features ``[N, D]``.
            predictions: Probabilities of the classes ``[N, K]``.
        """
        if self.random_features is None:
            return (predictions[:, :, None] * features[:, None, :]).flatten(1)
        projected = (features @ self.feature_projection) * (predictions @ self.prediction_projection)
        return projected / math.sqrt(self.random_features)

    def forward(self, source_images: Tensor, source_labels: Tensor, target_images: Tensor, progress: float) -> Losses:
        features, *domains = self.encode(source_images, target_images)
        logits = [self.classifier(x) for x in domains]
        of_source = logits[0] if domains[0] is features else self.classifier(features)
        strengths = {"task": {"loss_cls": 1.0}, "alignment": {"loss_domain": self.options.strength(progress)}}
        strength = self.inside(strengths)["loss_domain"]
        conditioned = (
            scale_gradient(self.condition(x, z.softmax(dim=1).detach()), -strength)
            for x, z in zip(domains, logits, strict=True)
        )
        judged = [z[:, 0] for z in self.discriminate(*conditioned)]
        if self.options.entropy:
            weights = [1 + certainty(z, strength) for z in logits]
            alignment = weighted_domain_loss(*judged, *weights)
        else:
            alignment = domain_loss(*judged)
        return {
            "task": {"loss_cls": cross_entropy(of_source, source_labels)},
            "alignment": {"loss_domain": alignment},
        }
