"""Dense detectors that adapt by their feature maps alone: RetinaNet and FCOS."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import ImageList, Instances
from torch import Tensor

from gh_downstream.detection.detectron2.adaptation import (
    Batch,
    DomainAdaptation,
    Maps,
    Outcome,
    temporarily,
)


class _Dense(DomainAdaptation):
    """What the dense detectors have in common: alignment of feature maps alone."""

    head: Any
    head_in_features: Sequence[str]
    forward_training: Any
    loss_normalizer: float

    def get_extra_state(self) -> Tensor:
        """The running mean that the losses are divided by; Detectron2 keeps it out of its checkpoints."""
        return torch.tensor(getattr(self, "loss_normalizer", math.nan), dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        if not state.isnan():  # before the first step there is none
            self.loss_normalizer = state.item()

    def _head_features(self) -> Sequence[str]:
        return self.head_in_features

    def _losses(self, batch: Batch, images: ImageList, maps: Maps, labels: list[Instances]) -> Outcome:
        levels = [maps[name] for name in self.head_in_features]
        return self.forward_training(images, levels, self.head(levels), labels), []

    def _pseudo_losses(self, batch: Batch, images: ImageList, maps: Maps, labels: list[Instances]) -> Outcome:
        # The running mean of the number of positive anchors, by which the losses are divided, is that of source.
        with temporarily(self, loss_normalizer=self.loss_normalizer):
            return super()._pseudo_losses(batch, images, maps, labels)


@META_ARCH_REGISTRY.register()
class DomainAdaptiveRetinaNet(_Dense, RetinaNet):
    """A ``RetinaNet`` that aligns feature maps of source and target while it learns to detect on source.

    The arguments are those of :class:`DomainAdaptation` and of ``RetinaNet``. There are no regions: with
    ``image_instance`` set the weights of the instance-level and of the consistency loss to 0.
    """


class DomainAdaptiveFCOS(_Dense, FCOS):
    """An ``FCOS`` that aligns feature maps of source and target; as Detectron2's, for a LazyConfig only.

    The arguments are those of :class:`DomainAdaptation` and of ``FCOS``; see :class:`DomainAdaptiveRetinaNet`.
    """
