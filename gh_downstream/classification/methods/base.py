"""What the methods have in common."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gh_downstream.classification.backbones import Backbone
from gh_downstream.training import AdaptedModel, Phase

Losses = dict[str, dict[str, Tensor]]
"""The losses of a step by side, ``task`` and ``alignment``, and by name."""


class Method(AdaptedModel):
    """A backbone, a classifier, and the losses that train them on source and target.

    Source and target pass through the backbone as one batch, so that batch normalization sees both.

    Args:
        backbone: From images to features.
        num_classes: Number of classes.

    Attributes:
        shared: Names of the parameters over which the gradients of the two sides are harmonized.
        needs_target: Whether it trains on target images.
    """

    shared: Sequence[str] = ("backbone",)
    needs_target = True

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.out_features, num_classes)

    def forward(self, source_images: Tensor, source_labels: Tensor, target_images: Tensor, progress: float) -> Losses:
        """Return the losses of a step.

        Args:
            source_images: Images of the source ``[N, C, H, W]``.
            source_labels: Their classes ``[N]``, int64.
            target_images: Images of the target ``[M, C, H, W]``.
            progress: Share of the training that is done, in [0, 1].
        """
        raise NotImplementedError

    def features(self, source_images: Tensor, target_images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features ``[N, D]`` and ``[M, D]`` of source and target, from one pass over both."""
        source, target = self.backbone(torch.cat([source_images, target_images])).split(
            [len(source_images), len(target_images)]
        )
        return source, target

    def classify(self, images: Tensor) -> Tensor:
        """Return the logits ``[N, K]`` of images ``[N, C, H, W]``, for evaluation."""
        return self.classifier(self.backbone(images))


class SourceOnly(Method):
    """The cross-entropy on the source alone; images of the target are not looked at."""

    needs_target = False

    def forward(  # type: ignore[override]
        self, source_images: Tensor, source_labels: Tensor, progress: float, target_images: Tensor | None = None
    ) -> Losses:
        return {"task": {"loss_cls": cross_entropy(self.classify(source_images), source_labels)}}


def domain_classifier(in_features: int, hidden_features: int) -> nn.Sequential:
    """Return a discriminator with one logit for each image, the log-odds of source: three linear layers and ReLU."""
    return nn.Sequential(
        nn.Linear(in_features, hidden_features),
        nn.ReLU(),
        nn.Linear(hidden_features, hidden_features),
        nn.ReLU(),
        nn.Linear(hidden_features, 1),
    )


def generator_phases(steps: int) -> tuple[Phase, ...]:
    """Return so many updates of the generator, the backbone, which are harmonized."""
    if steps < 1:
        raise ValueError(f"method_options: generator_steps must be at least 1, got {steps}")
    return (Phase("generator", ("backbone",), harmonized=True),) * steps
