"""Domain-adversarial neural networks."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from gh_downstream.adaptation import domain_loss, reversal_schedule, scale_gradient
from gh_downstream.classification.backbones import Backbone
from gh_downstream.classification.methods.base import Losses, Method, domain_classifier


class DANN(Method):
    r"""DANN (Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016, arXiv
    1505.07818).

    A discriminator learns to tell the features of the domains apart, and through gradient reversal the backbone learns
    to confuse it. **task**: cross-entropy on the source. **alignment**: the discriminator's cross-entropy. Shared: the
    backbone.

    Args:
        trade_off: Final strength of the gradient reversal; it rises by :func:`~gh_downstream.adaptation.
            reversal_schedule` over the training. It is inside of the alignment's gradient when that is measured.
        hidden: Width of the discriminator.
    """

    def __init__(self, backbone: Backbone, num_classes: int, *, trade_off: float = 1.0, hidden: int = 1024) -> None:
        super().__init__(backbone, num_classes)
        self.trade_off = trade_off
        self.discriminator = domain_classifier(backbone.out_features, hidden)

    def forward(self, source_images: Tensor, source_labels: Tensor, target_images: Tensor, progress: float) -> Losses:
        features, target_features = self.features(source_images, target_images)
        strength = self.trade_off * reversal_schedule(progress)
        of_source, of_target = (self.discriminator(scale_gradient(x, -strength)) for x in (features, target_features))
        return {
            "task": {"loss_cls": cross_entropy(self.classifier(features), source_labels)},
            "alignment": {"loss_domain": domain_loss(of_source, of_target)},
        }
