"""Dynamic weighted learning."""

from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from gh_downstream.adaptation import domain_loss, scale_gradient
from gh_downstream.classification.backbones import Backbone
from gh_downstream.classification.methods.base import (
    HeadLayers,
    HiddenLayers,
    Losses,
    Method,
    generator_phases,
)
from gh_downstream.classification.methods.entropy import entropy
from gh_downstream.classification.methods.mcd import discrepancy
from gh_downstream.harmonization.checks import check_numbers
from gh_downstream.harmonization.distributed import all_reduce_mean
from gh_downstream.training import Phase


@dataclass(kw_only=True)
class DWLOptions(HiddenLayers):
    """Options of :class:`DWL`; the hidden layers are those of the discriminator.

    Attributes:
        trade_off: Weight of the adversarial loss.
        target_weight: Weight of the loss of update 5. (2 in the published code; a network that starts from random
            weights then soon predicts one class alone.)
        generator_steps: How many times update 4 comes in a step.
        heads: The hidden layers of the three classifiers.
    """

    trade_off: float = 0.2
    target_weight: float = 0.1
    generator_steps: int = 4
    heads: HeadLayers = field(default_factory=HeadLayers)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, generator_steps=">= 1")


class DWL(Method):
    r"""DWL (Xiao and Zhang, "Dynamic Weighted Learning for Unsupervised Domain Adaptation", CVPR 2021,
    arXiv 2103.13814).

    A generator, three classifiers and a discriminator play a game of five kinds of updates a step:

    1. generator and classifier learn the source;
    2. the discriminator learns to tell the domains apart;
    3. the classifiers learn the source, and the second and third to disagree on the target;
    4. the generator confuses the discriminator and makes the three classifiers agree, ``generator_steps`` times:
       :math:`T L_{adv} + (1 - T) L_{dis}`;
    5. generator and classifier sharpen the predictions on the target by their own most likely class, or by their
       entropy where they are unsure.

    The balance :math:`T = \frac{A}{A + 1 - J}` is high while the domains are apart, :math:`A`, and the
    classes already are, :math:`J`. :math:`A` is the squared distance of the mean features of the domains, :math:`J` the
    ratio of the scatter between and within the classes on the target, both averaged over the steps and scaled to [0, 1]
    between the least and the largest value so far. (The published code computes both once an epoch, :math:`J` as an
    eigenvalue problem over all features.)

    **task**: the disagreement of the classifiers on the target, :math:`(1 - T) L_{dis}`. **alignment**: the adversarial
    loss, :math:`T L_{adv}`. Both in update 4, over the generator, which is the backbone and gets the weights.
    """

    Options = DWLOptions

    def __init__(self, backbone: Backbone, num_classes: int, options: DWLOptions) -> None:
        super().__init__(backbone, num_classes, options)
        self.classifier1 = self.head(num_classes)
        self.classifier2 = self.head(num_classes)
        self.discriminator = options.network(backbone.out_features, 1)
        self.num_classes = num_classes
        self.balance = Balance()
        self.phases = (
            Phase("source", ("backbone", "classifier")),
            Phase("discriminator", ("discriminator",)),
            Phase("classifiers", ("classifier", "classifier1", "classifier2")),
            *generator_phases(options.generator_steps),
            Phase("target", ("backbone", "classifier")),
        )

    def head(self, num_classes: int) -> nn.Module:
        """Return a new classifier of features."""
        return self.options.heads.network(self.backbone.out_features, num_classes, dropout_first=True)

    @property
    def figures(self) -> dict[str, Tensor]:
        """The balance, for a line of metrics."""
        return {"balance": self.balance.value}

    def forward(  # type: ignore[override]
        self, source_images: Tensor, source_labels: Tensor, target_images: Tensor, progress: float, phase: str
    ) -> Losses:
        """Return the losses of a phase: ``source``, ``discriminator``, ``classifiers``, ``generator`` or ``target``."""
        source, target = self.both(self.backbone, source_images, target_images)
        if phase == "source":
            return {"task": {"loss_cls": cross_entropy(self.classifier(source), source_labels)}}
        if phase == "discriminator":
            loss = domain_loss(*self.discriminate(source, target))
            return {"alignment": {"loss_discriminator": loss}}
        classifiers = (self.classifier, self.classifier1, self.classifier2)
        if phase == "classifiers":
            joint = self.options.heads.batch_norm
            logits = [self.both(classifier, source, target, batch_norm=joint) for classifier in classifiers]
            on_source = torch.stack([cross_entropy(x, source_labels) for x, _ in logits])
            task = {"loss_classifiers": on_source.sum()}
            return {"task": task, "alignment": {"loss_disagreement": -discrepancy(logits[1][1], logits[2][1])}}
        if phase == "target":
            of_target = self.classifier(target)
            self.balance.update(source, target, of_target)
            return {"task": {"loss_target": self.options.target_weight * self._sharpened(of_target)}}
        share = self.balance.value
        strengths = self.inside(
            {
                "task": {"loss_discrepancy": 1.0 - share},
                "alignment": {"loss_adversarial": share * self.options.trade_off},
            }
        )
        logits_of_target = [classifier(target) for classifier in classifiers]
        confusing = domain_loss(*self.discriminate(*(scale_gradient(x, -1.0) for x in (source, target))))
        apart = torch.stack([discrepancy(x, y) for x, y in combinations(logits_of_target, 2)]).sum()
        return {
            "task": {"loss_discrepancy": strengths["loss_discrepancy"] * apart},
            "alignment": {"loss_adversarial": strengths["loss_adversarial"] * confusing},
        }

    def _sharpened(self, logits: Tensor) -> Tensor:
        unsure = entropy(logits)
        certainty = ((-unsure.detach()).exp() - 1 / self.num_classes) / (1 - 1 / self.num_classes)
        own = cross_entropy(logits, logits.argmax(dim=1), reduction="none")
        return (certainty * own + (1 - certainty) * unsure).mean()


class Balance(nn.Module):
    """How far the domains are apart, against how well the classes are told apart; see :class:`DWL`.

    The averages over the steps decay by ``decay``.
    """

    average: Tensor
    least: Tensor
    largest: Tensor

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        self.decay = decay
        # Of the distance of the domains and the separation of the classes: average, least and largest of it so far.
        self.register_buffer("average", torch.full((2,), float("nan")))
        self.register_buffer("least", torch.full((2,), float("inf")))
        self.register_buffer("largest", torch.full((2,), float("-inf")))

    @property
    def value(self) -> Tensor:
        """The share of the alignment, in [0, 1], of shape ``[]``; 1/2 before anything is known."""
        span = self.largest - self.least
        apart, separated = torch.where(span > 0, (self.average - self.least) / span, 0.5)
        denominator = apart + 1 - separated
        return torch.where(denominator > 0, apart / denominator, 0.5)

    @torch.no_grad()
    def update(self, source: Tensor, target: Tensor, logits: Tensor) -> None:
        """Take a step into account: features ``[N, D]`` and ``[M, D]``, and logits ``[M, K]`` of the target."""
        apart = (source.mean(dim=0) - target.mean(dim=0)).square().sum()
        members = one_hot(logits.argmax(dim=1), logits.shape[1]).to(target)
        centers = members.T @ target / members.sum(dim=0).clamp(min=1)[:, None]
        within = (target - members @ centers).square().sum()
        between = (members @ centers - target.mean(dim=0)).square().sum()
        now = torch.stack([apart, between / within.clamp(min=torch.finfo(within.dtype).tiny)]).to(self.average)
        all_reduce_mean([now])  # the ranks weigh alike
        self.average = torch.where(self.average.isnan(), now, self.decay * self.average + (1 - self.decay) * now)
        self.least = torch.minimum(self.least, self.average)
        self.largest = torch.maximum(self.largest, self.average)
