"""Maximum classifier discrepancy."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gh_downstream.classification.backbones import Backbone
from gh_downstream.classification.methods.base import HeadLayers, Losses, Method, generator_phases
from gh_downstream.harmonization.checks import check_numbers
from gh_downstream.harmonization.distributed import all_reduce_mean
from gh_downstream.training import Phase


@dataclass(kw_only=True)
class MCDOptions:
    """Options of :class:`MCD`.

    Attributes:
        trade_off: Weight of the discrepancy.
        entropy_weight: Weight of the imbalance of the predictions on the target.
        generator_steps: How many times update C comes in a step.
        heads: The hidden layers of both classifiers.
    """

    trade_off: float = 1.0
    entropy_weight: float = 0.01
    generator_steps: int = 4
    heads: HeadLayers = field(default_factory=HeadLayers)

    def __post_init__(self) -> None:
        check_numbers(self, generator_steps=">= 1")


def discrepancy(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference of the probabilities of two classifiers, of logits ``[N, K]`` (MCD's discrepancy)."""
    return (first.softmax(dim=1) - second.softmax(dim=1)).abs().mean()


def imbalance(logits: Tensor) -> Tensor:
    r"""Return :math:`-\frac{1}{K} \sum_k \log \bar p_k`, with the mean probability of each class over the images.

    The logits are ``[N, K]``. It is least, :math:`\log K`, where the classes are predicted alike often: MCD calls it
    entropy. The ranks take the mean over the joined batch.
    """
    mean = logits.softmax(dim=1).mean(dim=0)
    joined = mean.detach().clone()
    all_reduce_mean([joined])
    # The value of the joined batch, the gradient of the own share: averaged over the ranks, that of the joined batch.
    return -(joined + mean - mean.detach() + 1e-6).log().mean()


class MCD(Method):
    r"""MCD (Saito et al., "Maximum Classifier Discrepancy", CVPR 2018, arXiv 1712.02560): a generator and two
    classifiers.

    Three kinds of updates alternate in every step:

    A. generator and classifiers learn the source: the cross-entropy of both, and to predict every class as often as the
       others on the target (:func:`imbalance`, with a small weight);
    B. the classifiers also learn to disagree on the target: cross-entropy minus discrepancy;
    C. the generator learns features on which they agree, ``generator_steps`` times.

    **task**: the cross-entropies, with the imbalance. **alignment**: the discrepancy. Shared: the generator, which is
    the backbone. In the paper C has the discrepancy alone, so that the generator never gets both gradients at a time
    and there is nothing to harmonize. Here C has the loss of A beside the discrepancy, for every weighting alike.
    """

    Options = MCDOptions

    def __init__(self, backbone: Backbone, num_classes: int, options: MCDOptions) -> None:
        super().__init__(backbone, num_classes, options)
        self.classifier2 = self.head(num_classes)
        classifiers = ("classifier", "classifier2")
        self.phases = (
            Phase("source", ("backbone", *classifiers)),
            Phase("classifiers", classifiers),
            *generator_phases(options.generator_steps),
        )

    def head(self, num_classes: int) -> nn.Module:
        """Return a new classifier of features."""
        return self.options.heads.network(self.backbone.out_features, num_classes, dropout_first=True)

    def forward(  # type: ignore[override]
        self, source_images: Tensor, source_labels: Tensor, target_images: Tensor, progress: float, phase: str
    ) -> Losses:
        """Return the losses of a phase: ``source``, ``classifiers`` or ``generator``."""
        features = self.both(self.backbone, source_images, target_images)
        logits = [self.both(classifier, *features) for classifier in (self.classifier, self.classifier2)]
        options = self.options
        task = {"loss_cls": torch.stack([cross_entropy(x, source_labels) for x, _ in logits]).sum()}
        if options.entropy_weight:
            task["loss_entropy"] = options.entropy_weight * torch.stack([imbalance(x) for _, x in logits]).sum()
        if phase == "source":
            return {"task": task}
        apart = discrepancy(logits[0][1], logits[1][1])
        if phase == "classifiers":
            return {"task": task, "alignment": {"loss_disagreement": -options.trade_off * apart}}
        strengths = {"task": dict.fromkeys(task, 1.0), "alignment": {"loss_discrepancy": options.trade_off}}
        return {
            "task": task,
            "alignment": {"loss_discrepancy": self.inside(strengths)["loss_discrepancy"] * apart},
        }

    def classify(self, images: Tensor) -> Tensor:
        """Return the sum of the logits of both classifiers."""
        features = self.backbone(images)
        return self.classifier(features) + self.classifier2(features)
