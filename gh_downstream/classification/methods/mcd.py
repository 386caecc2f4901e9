"""Maximum classifier discrepancy."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gh_downstream.classification.backbones import Backbone
from gh_downstream.classification.methods.base import Losses, Method, generator_phases
from gh_downstream.classification.methods.entropy import entropy
from gh_downstream.training import Phase


def discrepancy(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference of the probabilities of two classifiers, of logits ``[N, K]`` (MCD's discrepancy)."""
    return (first.softmax(dim=1) - second.softmax(dim=1)).abs().mean()


class MCD(Method):
    r"""MCD (Saito et al., "Maximum Classifier Discrepancy", CVPR 2018, arXiv 1712.02560): a generator and two
    classifiers.

    Three kinds of updates alternate in every step:

    A. generator and classifiers learn the source: the cross-entropy of both, and a little of the entropy on the target;
    B. the classifiers also learn to disagree on the target: cross-entropy minus discrepancy;
    C. the generator learns features on which they agree, ``generator_steps`` times.

    **task**: the cross-entropies, with the entropy. **alignment**: the discrepancy. Shared: the generator, which is the
    backbone. In the paper C has the discrepancy alone, so that the generator never gets both gradients at a time and
    there is nothing to harmonize. Here C has the loss of A beside the discrepancy, for every weighting alike.

    Args:
        trade_off: Weight of the discrepancy; inside of the gradients that are measured.
        entropy_weight: Weight of the entropy of the predictions on the target.
        generator_steps: How many times C comes in a step.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        trade_off: float = 1.0,
        entropy_weight: float = 0.01,
        generator_steps: int = 4,
    ) -> None:
        super().__init__(backbone, num_classes)
        self.classifier2 = nn.Linear(backbone.out_features, num_classes)
        self.trade_off = trade_off
        self.entropy_weight = entropy_weight
        classifiers = ("classifier", "classifier2")
        self.phases = (
            Phase("source", ("backbone", *classifiers)),
            Phase("classifiers", classifiers),
            *generator_phases(generator_steps),
        )

    def forward(  # type: ignore[override]
        self, source_images: Tensor, source_labels: Tensor, target_images: Tensor, progress: float, phase: str
    ) -> Losses:
        """Return the losses of a phase: ``source``, ``classifiers`` or ``generator``."""
        source, target = self.features(source_images, target_images)
        first, second = self.classifier(target), self.classifier2(target)
        task = {
            "loss_cls": cross_entropy(self.classifier(source), source_labels)
            + cross_entropy(self.classifier2(source), source_labels)
        }
        if self.entropy_weight:
            task["loss_entropy"] = self.entropy_weight * (entropy(first).mean() + entropy(second).mean())
        if phase == "source":
            return {"task": task}
        apart = self.trade_off * discrepancy(first, second)
        if phase == "classifiers":
            return {"task": task, "alignment": {"loss_disagreement": -apart}}
        return {"task": task, "alignment": {"loss_discrepancy": apart}}

    def classify(self, images: Tensor) -> Tensor:
        """Return the sum of the logits of both classifiers."""
        features = self.backbone(images)
        return self.classifier(features) + self.classifier2(features)
