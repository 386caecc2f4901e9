"""Strong-Weak Distribution Alignment, for any engine: strong on a low-level map, weak on a high-level one.

An engine hands over the feature maps of a source and of a target batch (Saito et al., CVPR 2019, arXiv 1812.04798).
Local features, such as colour and texture, are to agree everywhere; whole images only where the domains overlap
already. The context vectors of the paper (the hidden layers of both discriminators, joined to the features of each
region) are left out: they change the detector itself, and plain checkpoints would no longer load.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from gh_downstream.adaptation import (
    GlobalDiscriminator,
    LocalDiscriminator,
    focal_domain_loss,
    least_squares_domain_loss,
    scale_gradient,
)
from gh_downstream.detection.alignment import DomainFeatures
from gh_downstream.harmonization.checks import check_numbers


@dataclass
class StrongWeakConfig:
    """How strongly the first and the last map are aligned. The defaults are the authors'.

    Attributes:
        local_weight: Weight of the least-squares loss on the first map; 0 turns it off.
        global_weight: Weight of the focal loss on the last map; 0 turns it off.
        gamma: Exponent of the focal loss: the higher, the less images count that are easily told apart.
        reversal_strength: Factor of the gradient that the discriminators send into the features.
        source_share: As in :class:`~gh_downstream.detection.alignment.AlignmentConfig`.
        local_hidden: Channels after the first layer of the local discriminator, at least 2.
        global_hidden: Channels after the first layer of the global discriminator, at least 8.
        global_dropout: Probability of dropping a hidden unit of the global discriminator, below 1. The 0.5 suits
            hundreds of channels; a narrow one hardly learns with it.

    Raises:
        ValueError: A number is out of range.
    """

    local_weight: float = 1.0
    global_weight: float = 1.0
    gamma: float = 5.0
    reversal_strength: float = 1.0
    source_share: float = 1.0
    local_hidden: int = 256
    global_hidden: int = 512
    global_dropout: float = 0.5

    def __post_init__(self) -> None:
        check_numbers(
            self, source_share=">= 0, <= 1", local_hidden=">= 2", global_hidden=">= 8", global_dropout=">= 0, < 1"
        )


class StrongWeakAlignment(nn.Module):
    """A local and a global discriminator behind gradient reversal, and their losses on a source and a target batch.

    The local one reads the first map, the global one the last; they may be the same. Losses and gradients are as in
    :class:`~gh_downstream.detection.alignment.DomainAlignment`, and ``reversal_strength`` may be set as there.

    Args:
        feature_channels: Channels ``C_l`` of the feature maps, one number for each.
        config: Weights and sizes. The parts of a loss with weight 0 are not built.

    Raises:
        ValueError: There are no feature maps.
    """

    needs_regions = False  # whether the features of regions are read

    def __init__(self, feature_channels: Sequence[int], config: StrongWeakConfig) -> None:
        super().__init__()
        if not feature_channels:
            raise ValueError("strong-weak alignment needs one feature map or more: give the channels of each")
        self.config = config
        self.reversal_strength = config.reversal_strength
        self.num_levels = len(feature_channels)
        self.local_head: nn.Module | None = None
        self.global_head: nn.Module | None = None
        if config.local_weight:
            self.local_head = LocalDiscriminator(feature_channels[0], config.local_hidden)
        if config.global_weight:
            self.global_head = GlobalDiscriminator(feature_channels[-1], config.global_hidden, config.global_dropout)

    def forward(self, source: DomainFeatures, target: DomainFeatures) -> dict[str, Tensor]:
        """Return the losses, each times its weight.

        The maps of low level come first in both batches, which have any number of images.

        Returns:
            ``loss_local_domain`` and ``loss_global_domain``, those that are on; scalars in float32 or wider.

        Raises:
            ValueError: The number of maps is not that of ``feature_channels``.
        """
        for domain, features in (("source", source), ("target", target)):
            if len(features.maps) != self.num_levels:
                raise ValueError(
                    f"strong-weak alignment was built for {self.num_levels} feature maps, but gets "
                    f"{len(features.maps)} of {domain}: feature_channels takes one number for each map"
                )
        config, factor = self.config, -self.reversal_strength
        losses = {}
        if self.local_head is not None:
            logits = [self.local_head(scale_gradient(x.levels[0], factor)) for x in (source, target)]
            losses["loss_local_domain"] = config.local_weight * least_squares_domain_loss(*logits)
        if self.global_head is not None:
            of_source, of_target = (self.global_head(scale_gradient(x.levels[-1], factor)) for x in (source, target))
            losses["loss_global_domain"] = config.global_weight * focal_domain_loss(of_source, of_target, config.gamma)
        return losses
