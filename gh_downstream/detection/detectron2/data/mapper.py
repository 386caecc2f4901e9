"""From the dictionary of an unlabelled image to what the model is given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from gh_downstream.detection.detectron2.data.register import ImageDict, unlabelled


class TargetMapper:
    """Maps a target image as a source image is mapped, without its labels, and with two views for a mean teacher.

    Args:
        weak: Maps a dictionary of Detectron2's standard format to ``"image"``, uint8 ``[3, H, W]``; that is
            ``DatasetMapper(cfg)`` or any other mapper. It never sees a label.
        strong: Changes the colours of an image, uint8 ``[H, W, 3]``, but moves nothing; then ``"image"`` is this
            strong view and ``"image_weak"`` what ``weak`` returned. None for one view.
    """

    def __init__(
        self, weak: Callable[[ImageDict], ImageDict], strong: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        self.weak = weak
        self.strong = strong

    def __call__(self, image: ImageDict) -> ImageDict:
        """Return what the model is given of an image; ``"domain"`` is ``"target"``."""
        mapped = {key: value for key, value in self.weak(unlabelled(image)).items() if key != "instances"}
        mapped["domain"] = "target"
        if self.strong is not None:
            mapped["image_weak"] = mapped["image"]
            strong = self.strong(mapped["image"].permute(1, 2, 0).numpy())
            mapped["image"] = torch.from_numpy(np.ascontiguousarray(strong.transpose(2, 0, 1)))
        return mapped
