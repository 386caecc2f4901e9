"""No adaptation: what the others are compared with."""

from __future__ import annotations

from torch import Tensor

from gh_downstream.classification.methods.base import Losses, Method


class SourceOnly(Method):
    """The cross-entropy on the source alone; images of the target are not looked at."""

    needs_target = False

    def forward(  # type: ignore[override]
        self, source_images: Tensor, source_labels: Tensor, progress: float, target_images: Tensor | None = None
    ) -> Losses:
        """Return the classification loss."""
        return {"task": {"loss_cls": self.classification_loss(self.backbone(source_images), source_labels)}}
