"""Gradually vanishing bridges."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gh_downstream.adaptation import scale_gradient
from gh_downstream.classification.backbones import Backbone
from gh_downstream.classification.methods.base import AdversarialOptions, HiddenLayers, Losses, Method
from gh_downstream.classification.methods.entropy import certainty, weighted_domain_loss


@dataclass(kw_only=True)
class GVBOptions(AdversarialOptions):
    """Options of :class:`GVB`.

    Attributes:
        generator_bridge: Weight of the loss of the generator's bridge.
        discriminator_bridge: Weight of the loss of the discriminator's bridge.
    """

    generator_bridge: float = 1.0
    discriminator_bridge: float = 1.0


class GVB(Method):
    r"""GVB-GD (Cui et al., "Gradually Vanishing Bridge for Adversarial Domain Adaptation", CVPR 2020,
    arXiv 2003.13183).

    A *bridge* beside the classifier takes what is specific to a domain out of the logits,
    :math:`z = \operatorname{classifier}(f) - \operatorname{bridge}(f)`, another one beside the
    discriminator out of its logit, and both are made to vanish. The discriminator sees the probabilities, through
    gradient reversal, and images that the classifier is sure of count more, by the weights :math:`e^{-H}`.

    **task**: cross-entropy on the source. **alignment**: the discriminator's cross-entropy, and the mean absolute
    outputs of the two bridges, once each. All four as tasks of their own are
    ``harmonization.tasks={domain: [loss_domain], classification: [loss_cls], generator_bridge:
    [loss_generator_bridge], discriminator_bridge: [loss_discriminator_bridge]}``.

    Shared: the backbone, the classifier and its bridge.
    """

    shared = ("backbone", "classifier", "bridge")

    Options = GVBOptions
    takes_share = True

    def __init__(self, backbone: Backbone, num_classes: int, options: GVBOptions) -> None:
        super().__init__(backbone, num_classes, options)
        self.bridge = nn.Linear(backbone.out_features, num_classes)
        self.discriminator = BridgedDiscriminator(num_classes, options)

    def forward(self, source_images: Tensor, source_labels: Tensor, target_images: Tensor, progress: float) -> Losses:
        features, *domains = self.encode(source_images, target_images)
        bridges = [self.bridge(x) for x in domains]
        of_domains = [self.classifier(x) - bridge for x, bridge in zip(domains, bridges, strict=True)]
        of_task = of_domains[0] if domains[0] is features else self.classifier(features) - self.bridge(features)
        logits = torch.cat(of_domains)
        strength = self.options.strength(progress)
        strengths = self.inside(
            {
                "task": {"loss_cls": 1.0},
                "alignment": {
                    "loss_domain": strength,
                    "loss_generator_bridge": self.options.generator_bridge,
                    "loss_discriminator_bridge": strength,
                },
            }
        )
        strength = strengths["loss_domain"]
        if strengths["loss_discriminator_bridge"] != strength:
            raise ValueError(
                "harmonization.tasks: loss_domain and loss_discriminator_bridge pass one gradient reversal, whose ramp "
                "cannot differ: put both or neither into a task with loss_generator_bridge, or set trade_offs=before"
            )
        domain_logits, domain_bridge = self.discriminator(scale_gradient(logits.softmax(dim=1), -strength))
        sizes = [len(x) for x in domains]
        of_source, of_target = domain_logits.split(sizes)
        source_weights, target_weights = certainty(logits, strength).split(sizes)
        return {
            "task": {"loss_cls": cross_entropy(of_task, source_labels)},
            "alignment": {
                "loss_domain": weighted_domain_loss(of_source, of_target, source_weights, target_weights),
                "loss_generator_bridge": strengths["loss_generator_bridge"] * torch.cat(bridges).abs().mean(),
                "loss_discriminator_bridge": self.options.discriminator_bridge * domain_bridge.abs().mean(),
            },
        }

    def classify(self, images: Tensor) -> Tensor:
        """Return the logits without what the bridge takes out."""
        features = self.backbone(images)
        return self.classifier(features) - self.bridge(features)


class BridgedDiscriminator(nn.Module):
    """A discriminator of probabilities with a bridge beside its last layer (GVB's bridge on the discriminator)."""

    def __init__(self, num_classes: int, options: HiddenLayers) -> None:
        super().__init__()
        self.layers, features = options.stack(num_classes)
        self.logit = nn.Linear(features, 1)
        self.bridge = nn.Linear(features, 1)

    def forward(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Return for probabilities ``[N, K]`` the log-odds of source ``[N]`` without the bridge, and the bridge."""
        hidden = self.layers(probabilities)
        bridge = self.bridge(hidden)[:, 0]
        return self.logit(hidden)[:, 0] - bridge, bridge
