"""Faster, Mask and Cascade R-CNN that adapt, with instance-level features beside the feature maps."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from gh_downstream.detection.detectron2.adaptation import (
    Batch,
    DomainAdaptation,
    Losses,
    Maps,
    Outcome,
    temporarily,
)


@META_ARCH_REGISTRY.register()
class DomainAdaptiveRCNN(DomainAdaptation, GeneralizedRCNN):
    """A ``GeneralizedRCNN`` that aligns the features of source and target while it learns to detect on source.

    Faster, Mask and Cascade R-CNN with any backbone: with ``StandardROIHeads`` and what derives from them (FPN, DC5,
    VGG16, ViT, Swin), and with ``Res5ROIHeads`` (C4). The instance-level features are a second pass of the box head (of
    the first stage of a cascade) over the best proposals of both domains.

    The arguments are those of :class:`DomainAdaptation` and of ``GeneralizedRCNN``; from a config, see
    :func:`add_adaptation_config`.
    """

    proposal_generator: Any
    roi_heads: Any
    vis_period: int
    visualize_training: Any

    @property
    def shared(self) -> list[str]:
        """Names of the modules that the task and the alignment losses share, for a Harmonizer's ``shared``."""
        if self.alignment is None or not self.alignment.needs_regions:
            return ["backbone"]
        if isinstance(self.roi_heads, Res5ROIHeads):
            return ["backbone", "roi_heads.res5"]
        cascade = isinstance(self.roi_heads.box_head, nn.ModuleList)
        return ["backbone", "roi_heads.box_head.0" if cascade else "roi_heads.box_head"]

    def _head_features(self) -> Sequence[str]:
        return self.roi_heads.in_features

    def _region_channels(self) -> int:
        if not isinstance(self.roi_heads, (Res5ROIHeads, StandardROIHeads)):
            return 0
        return _first(self.roi_heads.box_predictor).cls_score.in_features

    def _losses(self, batch: Batch, images: ImageList, maps: Maps, labels: list[Instances] | None) -> Outcome:
        proposals, losses = self._proposals(batch, images, maps, labels)
        _, region_losses = self.roi_heads(images, maps, proposals, labels)
        return {**region_losses, **losses}, proposals

    def _source_losses(self, batch: Batch, images: ImageList, maps: Maps) -> Outcome:
        losses, proposals = super()._source_losses(batch, images, maps)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batch, proposals)
        return losses, proposals

    def _pseudo_losses(self, batch: Batch, images: ImageList, maps: Maps, labels: list[Instances]) -> Outcome:
        # Pseudo-labels have no masks and keypoints.
        with temporarily(self.roi_heads, mask_on=False, keypoint_on=False):
            return super()._pseudo_losses(batch, images, maps, labels)

    @torch.no_grad()
    def _propose(self, batch: Batch, images: ImageList, maps: Maps) -> list[Instances]:
        if self.alignment is None or not self.alignment.needs_regions:
            return []
        # Only its own flag, which says whether there are labels: its layers stay in training mode.
        with temporarily(self.proposal_generator, training=False):
            return self._proposals(batch, images, maps, None)[0]

    def _proposals(
        self, batch: Batch, images: ImageList, maps: Maps, labels: list[Instances] | None
    ) -> tuple[list[Instances], Losses]:
        if self.proposal_generator is None:  # precomputed
            return [x["proposals"].to(self.device) for x in batch], {}
        return self.proposal_generator(images, maps, labels)

    def _region_features(self, maps: Maps, proposals: list[Instances]) -> Tensor:
        heads = self.roi_heads
        levels = [maps[name] for name in heads.in_features]
        boxes = [found.proposal_boxes for found in proposals]
        if isinstance(heads, Res5ROIHeads):
            return heads._shared_roi_transform(levels, boxes).mean(dim=(2, 3))
        return _first(heads.box_head)(heads.box_pooler(levels, boxes)).flatten(1)


def _first(head: Any) -> Any:
    """The head of the first stage of a cascade, or the only one."""
    return head[0] if isinstance(head, nn.ModuleList) else head
