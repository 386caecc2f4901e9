"""Domain-adversarial neural networks."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from gh_downstream.adaptation import domain_loss, scale_gradient
from gh_downstream.classification.backbones import Backbone
from gh_downstream.classification.methods.base import AdversarialOptions, Losses, Method


class DANN(Method):
    r"""DANN (Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016, arXiv
    1505.07818).

    A discriminator learns to tell the features of the domains apart, and through gradient reversal the backbone learns
    to confuse it. **task**: cross-entropy on the source. **alignment**: the discriminator's cross-entropy. Shared: the
    backbone.
    """

    Options = AdversarialOptions
    takes_share = True

    def __init__(self, backbone: Backbone, num_classes: int, options: AdversarialOptions) -> None:
        super().__init__(backbone, num_classes, options)
        self.discriminator = options.network(backbone.out_features, 1)

    def forward(self, source_images: Tensor, source_labels: Tensor, target_images: Tensor, progress: float) -> Losses:
        features, *domains = self.encode(source_images, target_images)
        strengths = {"task": {"loss_cls": 1.0}, "alignment": {"loss_domain": self.options.strength(progress)}}
        strength = self.inside(strengths)["loss_domain"]
        reversed_features = (scale_gradient(x, -strength) for x in domains)
        return {
            "task": {"loss_cls": cross_entropy(self.classifier(features), source_labels)},
            "alignment": {"loss_domain": domain_loss(*self.discriminate(*reversed_features))},
        }
