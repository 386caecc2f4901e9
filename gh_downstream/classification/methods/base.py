"""What the methods have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gh_downstream.adaptation import encode_source, reversal_schedule
from gh_downstream.classification.backbones import Backbone
from gh_downstream.harmonization.checks import check_numbers
from gh_downstream.training import AdaptedModel, Phase

Losses = dict[str, dict[str, Tensor]]
"""The losses of a step by side, ``task`` and ``alignment``, and by name."""


@dataclass(kw_only=True)
class HiddenLayers:
    """Hidden layers: each is linear, with ReLU.

    Attributes:
        hidden: Width of the hidden layers.
        hidden_layers: How many of them there are.
        dropout: Probability of dropping a hidden unit.
        batch_norm: Whether they have batch normalization before ReLU.
    """

    hidden: int = 1024
    hidden_layers: int = 2
    dropout: float = 0.0
    batch_norm: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, hidden=">= 1", dropout=">= 0, < 1")

    def stack(self, in_features: int, *, dropout_first: bool = False) -> tuple[nn.Sequential, int]:
        """Return the layers, with dropout behind or before each of them, and the number of features after them."""
        layers: list[nn.Module] = []
        for _ in range(self.hidden_layers):
            block = [nn.Linear(in_features, self.hidden), nn.ReLU()]
            if self.batch_norm:
                block.insert(1, nn.BatchNorm1d(self.hidden))
            if self.dropout:
                block.insert(0 if dropout_first else len(block), nn.Dropout(self.dropout))
            layers += block
            in_features = self.hidden
        return nn.Sequential(*layers), in_features

    def network(self, in_features: int, out_features: int, *, dropout_first: bool = False) -> nn.Module:
        """Return the layers with a linear one behind them."""
        layers, features = self.stack(in_features, dropout_first=dropout_first)
        last = nn.Linear(features, out_features)
        return layers.append(last) if self.hidden_layers else last


@dataclass(kw_only=True)
class HeadLayers(HiddenLayers):
    """Hidden layers of classifiers, with dropout before each of them; by default there are none."""

    hidden_layers: int = 0


@dataclass(kw_only=True)
class AdversarialOptions(HiddenLayers):
    """Options of a method with a discriminator, whose hidden layers they describe, behind a gradient reversal.

    Attributes:
        trade_off: Final strength of the gradient reversal, which rises over the training.
        gamma: Speed of the rise, see :func:`~gh_downstream.adaptation.reversal_schedule`. Published code counts steps
            in its place: ``training.steps / 1000`` is the same.
    """

    trade_off: float = 1.0
    gamma: float = 10.0

    def strength(self, progress: float) -> float:
        """Return the strength of the gradient reversal."""
        return self.trade_off * reversal_schedule(progress, self.gamma)


class Method(AdaptedModel):
    """A backbone, a classifier, and the losses that train them on source and target.

    Args:
        backbone: From images to features.
        num_classes: Number of classes.
        options: What :attr:`Options` makes.

    Attributes:
        Options: The options of the method, a dataclass; None where it has none.
        shared: Names of the parameters over which the gradients of the two sides are harmonized.
        needs_target: Whether it trains on target images.
        separate_domains: Whether source and target pass one after the other, so that batch normalization takes the
            statistics of each domain alone; otherwise they pass as one batch, and it sees both.
        takes_share: Whether it can leave source images out of the alignment, with separate domains.
        source_share: Share of the source images that the gradient of the alignment reaches.
    """

    Options: type[Any] | None = None
    discriminator: nn.Module
    shared: Sequence[str] = ("backbone",)
    needs_target = True
    separate_domains = False
    takes_share = False
    source_share = 1.0

    def __init__(self, backbone: Backbone, num_classes: int, options: Any = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.options = options
        self.classifier = self.head(num_classes)

    def forward(self, source_images: Tensor, source_labels: Tensor, target_images: Tensor, progress: float) -> Losses:
        """Return the losses of a step.

        Args:
            source_images: Images of the source ``[N, C, H, W]``.
            source_labels: Their classes ``[N]``, int64.
            target_images: Images of the target ``[M, C, H, W]``.
            progress: Share of the training that is done, in [0, 1].
        """
        raise NotImplementedError

    def head(self, num_classes: int) -> nn.Module:
        """Return a new classifier of features."""
        return nn.Linear(self.backbone.out_features, num_classes)

    def both(
        self, module: nn.Module, source: Tensor, target: Tensor, *, batch_norm: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return what a module makes of source ``[N, ...]`` and target ``[M, ...]``."""
        if self.separate_domains or not batch_norm:
            return module(source), module(target)
        return together(module, source, target)

    def encode(self, source_images: Tensor, target_images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features of the source for the task, then those of source and target for the alignment."""
        if self.source_share == 1:
            source, target = self.both(self.backbone, source_images, target_images)
            return source, source, target
        return *encode_source(self.backbone, source_images, self.source_share), self.backbone(target_images)

    def discriminate(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the discriminator, whose batch normalization always has to see both domains."""
        if self.options.batch_norm:
            return together(self.discriminator, source, target)
        return self.discriminator(source), self.discriminator(target)

    def classify(self, images: Tensor) -> Tensor:
        """Return the logits ``[N, K]`` of images ``[N, C, H, W]``, for evaluation."""
        return self.classifier(self.backbone(images))


def together(module: nn.Module, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a module makes of source ``[N, ...]`` and target ``[M, ...]`` as one batch."""
    of_source, of_target = module(torch.cat([source, target])).split([len(source), len(target)])
    return of_source, of_target


class SourceOnly(Method):
    """The cross-entropy on the source alone; images of the target are not looked at."""

    needs_target = False

    def forward(  # type: ignore[override]
        self, source_images: Tensor, source_labels: Tensor, progress: float, target_images: Tensor | None = None
    ) -> Losses:
        return {"task": {"loss_cls": cross_entropy(self.classify(source_images), source_labels)}}


def generator_phases(steps: int) -> tuple[Phase, ...]:
    """Return so many updates of the generator, the backbone, which are harmonized."""
    return (Phase("generator", ("backbone",), harmonized=True),) * steps
