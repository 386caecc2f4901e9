"""The alignment of a domain-adaptive Faster R-CNN: discriminators and losses over features, for any engine.

An engine hands over the feature maps of a source and of a target batch and, for instance-level alignment, the
features of their proposals. Domain Adaptive Faster R-CNN (Chen et al., CVPR 2018, arXiv 1803.03243).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gh_downstream.adaptation import (
    ImageDiscriminator,
    InstanceDiscriminator,
    PooledImageDiscriminator,
    consistency_loss,
    domain_loss,
    number_reached,
    scale_gradient,
)
from gh_downstream.harmonization.checks import check_numbers


@dataclass
class AlignmentConfig:
    """What is aligned, and how strongly. The defaults are those of the PyTorch port of DA Faster R-CNN.

    Attributes:
        image_weight: Weight of the image-level domain loss; 0 turns it off.
        instance_weight: Weight of the instance-level domain loss; 0 turns it off.
        consistency_weight: Weight of the consistency loss, which needs the other two; 0 turns it off.
        reversal_strength: Factor of the gradient that the discriminators send into the features.
        source_share: Share of the source images that the gradient of the alignment reaches, in [0, 1]; with 0 the
            target alone is aligned with the source. Below 1 it is another objective, see
            :func:`~gh_downstream.adaptation.encode_source`.
        pooled: One image-level logit for each image instead of one for each location.
        per_level: One image-level discriminator for each level instead of one for all.
        image_hidden: Hidden channels of the image-level discriminator.
        image_std: Standard deviation of the initial weights of the image-level discriminator (per location).
        instance_hidden: Hidden width of the instance-level discriminator.
        instance_regions: Highest-scoring proposals of each image that take part in instance-level alignment.

    Raises:
        ValueError: A negative number, or a consistency loss without one of the two discriminators that it compares.
    """

    image_weight: float = 1.0
    instance_weight: float = 1.0
    consistency_weight: float = 0.1
    reversal_strength: float = 0.1
    source_share: float = 1.0
    pooled: bool = False
    per_level: bool = False
    image_hidden: int = 512
    image_std: float = 0.001
    instance_hidden: int = 1024
    instance_regions: int = 128

    def __post_init__(self) -> None:
        check_numbers(
            self, source_share=">= 0, <= 1", image_hidden=">= 1", instance_hidden=">= 1", instance_regions=">= 1"
        )
        if self.consistency_weight and not (self.image_weight and self.instance_weight):
            raise ValueError(
                "the consistency loss compares the image-level with the instance-level discriminator, but one of them "
                "is off: set consistency_weight to 0.0 too"
            )


class DomainFeatures(NamedTuple):
    """Features of one batch of one domain.

    Attributes:
        maps: Feature maps of shape ``[N, C, H_l, W_l]``, one for each level.
        regions: Features of the batch's regions of shape ``[R, D]``, those of the first image first.
        regions_per_image: The ``N`` numbers of regions; 0 is allowed.
    """

    maps: Mapping[str, Tensor] | Sequence[Tensor]
    regions: Tensor | None = None
    regions_per_image: Sequence[int] = ()

    @property
    def levels(self) -> list[Tensor]:
        """The feature maps without their names."""
        return list(self.maps.values() if isinstance(self.maps, Mapping) else self.maps)


class DomainAlignment(nn.Module):
    """Discriminators behind gradient reversal, and their losses on a source and a target batch.

    One image-level discriminator serves all levels of a feature pyramid, or each has its own (``per_level``), and each
    level counts the same. Every loss is a mean, so that it depends neither on the sizes of the images nor on the sizes
    of the two batches.

    The gradients of the domain losses reach the features times ``-reversal_strength``, those of the consistency loss
    times ``+reversal_strength``: the features are asked to fool both discriminators, and to let them agree. The
    discriminators themselves always learn with the full gradient.

    Args:
        feature_channels: Channels ``C_l`` of the feature maps, one number for each level; or the one number of all of
            them, however many, which ``per_level`` does not take.
        region_features: Length ``D`` of a region's features.
        config: Weights and sizes. The parts of a loss with weight 0 are not built.

    Attributes:
        reversal_strength: May be set during training, see :func:`~gh_downstream.adaptation.reversal_schedule`.

    Raises:
        ValueError: One discriminator for all levels, but their channels differ; or one for each level, but their
            number is not known.
    """

    def __init__(self, feature_channels: int | Sequence[int], region_features: int, config: AlignmentConfig) -> None:
        super().__init__()
        self.config = config
        self.reversal_strength = config.reversal_strength
        self.num_levels = None if isinstance(feature_channels, int) else len(feature_channels)
        self.image_head: nn.Module | None = None
        self.instance_head: nn.Module | None = None
        if config.image_weight:
            self.image_head = _image_head(feature_channels, config)
        if config.instance_weight:
            self.instance_head = InstanceDiscriminator(region_features, config.instance_hidden)

    @property
    def needs_regions(self) -> bool:
        """Whether the features of regions are needed."""
        return self.instance_head is not None

    def forward(self, source: DomainFeatures, target: DomainFeatures) -> dict[str, Tensor]:
        """Return the losses, each times its weight.

        Both batches have as many levels, and any number of images. The maps of source are those of
        :func:`~gh_downstream.adaptation.encode_source`, with ``source_share``; of its regions it is seen to here.

        Returns:
            ``loss_image_domain``, ``loss_instance_domain`` and ``loss_consistency``, those that are on; scalars in
            float32 or wider.

        Raises:
            ValueError: The numbers of levels differ, or are not the number of ``feature_channels``; or region features
                are missing or do not fit their counts.
        """
        if len(source.maps) != len(target.maps):
            raise ValueError(f"source has {len(source.maps)} feature levels, but target {len(target.maps)}")
        config = self.config
        losses = {}
        if config.source_share < 1 and source.regions is not None:
            images = number_reached(len(source.regions_per_image), config.source_share)
            reached = sum(source.regions_per_image[:images])
            regions = torch.cat([source.regions[:reached], source.regions[reached:].detach()])
            source = source._replace(regions=regions)
        both, factor = (source, target), -self.reversal_strength
        if self.image_head is not None:
            levels = zip(*(self._image_logits(features, factor) for features in both), strict=True)
            loss = torch.stack([domain_loss(*logits) for logits in levels]).mean()
            losses["loss_image_domain"] = config.image_weight * loss
        if self.instance_head is not None:
            loss = domain_loss(*(self._region_logits(features, factor) for features in both))
            losses["loss_instance_domain"] = config.instance_weight * loss
        if config.consistency_weight:
            loss = 0.5 * (self._consistency(source) + self._consistency(target))
            losses["loss_consistency"] = config.consistency_weight * loss
        return losses

    def _image_logits(self, features: DomainFeatures, factor: float) -> list[Tensor]:
        """Image-level logits of each level, whose gradient reaches the maps times ``factor``."""
        assert self.image_head is not None
        levels = features.levels
        if self.num_levels not in (None, len(levels)):
            raise ValueError(
                f"the alignment was built for {self.num_levels} feature levels, but gets {len(levels)}: "
                "feature_channels takes one number for each level"
            )
        heads = self.image_head if isinstance(self.image_head, nn.ModuleList) else [self.image_head] * len(levels)
        return [head(scale_gradient(level, factor)) for head, level in zip(heads, levels, strict=True)]

    def _region_logits(self, features: DomainFeatures, factor: float) -> Tensor:
        """Instance-level logits of shape ``[R]``, whose gradient reaches the region features times ``factor``."""
        assert self.instance_head is not None
        if features.regions is None:
            raise ValueError("instance-level alignment is on, but the features of the regions are missing")
        return self.instance_head(scale_gradient(features.regions, factor)).flatten()

    def _consistency(self, features: DomainFeatures) -> Tensor:
        """Consistency loss of one domain."""
        logits = self._image_logits(features, self.reversal_strength)
        image = torch.stack([level.float().sigmoid().flatten(1).mean(dim=1) for level in logits], dim=1)
        region = self._region_logits(features, self.reversal_strength).float().sigmoid()
        return consistency_loss(image, region, features.regions_per_image)


def _image_head(feature_channels: int | Sequence[int], config: AlignmentConfig) -> nn.Module:
    """The image-level discriminator of all levels, or a list with one for each."""

    def build(channels: int) -> nn.Module:
        if config.pooled:
            return PooledImageDiscriminator(channels, config.image_hidden)
        return ImageDiscriminator(channels, config.image_hidden, config.image_std)

    if isinstance(feature_channels, int):
        if config.per_level:
            raise ValueError(
                f"per_level builds one discriminator for each level, but feature_channels is {feature_channels} for "
                "any number of them: give a list with one number for each level"
            )
        return build(feature_channels)
    if config.per_level:
        return nn.ModuleList(map(build, feature_channels))
    if len(set(feature_channels)) != 1:
        raise ValueError(
            f"one image-level discriminator cannot read levels of {list(feature_channels)} channels: set "
            "alignment.per_level, or align levels of equal channels"
        )
    return build(feature_channels[0])
