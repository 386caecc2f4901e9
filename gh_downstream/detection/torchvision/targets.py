"""Annotations of source images, checked, as torchvision's detectors take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def checked_targets(
    images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]], num_classes: int
) -> list[dict[str, Tensor]]:
    """Check the targets of images, and return them in torchvision's form.

    Args:
        images: Images of shape ``[3, H, W]``.
        targets: For each image ``boxes`` of shape ``[n, 4]`` as x1, y1, x2, y2 in pixels, ``labels`` of shape ``[n]``
            from 0, and optionally ``file_name``, which errors then name.
        num_classes: Number of object classes.

    Returns:
        For each image ``boxes`` in float32 and ``labels`` from 1.

    Raises:
        ValueError: There are not as many targets as images or labels as boxes, or a box is degenerate, outside of its
            image, or of an unknown class.
    """
    if len(images) != len(targets):
        raise ValueError(f"{len(images)} source images but targets for {len(targets)}")
    converted = [
        {"boxes": target["boxes"].float().reshape(-1, 4), "labels": target["labels"].long() + 1} for target in targets
    ]
    names = [target.get("file_name", f"source image {i} of the batch") for i, target in enumerate(targets)]
    for name, target in zip(names, converted, strict=True):
        if len(target["boxes"]) != len(target["labels"]):
            raise ValueError(f"{name}: {len(target['boxes'])} boxes but {len(target['labels'])} labels")
    # All images at once: the check reads the device once a step.
    boxes = torch.cat([target["boxes"] for target in converted])
    labels = torch.cat([target["labels"] for target in converted])
    owner = [i for i, target in enumerate(converted) for _ in range(len(target["boxes"]))]
    limits = boxes.new_tensor([[images[i].shape[2], images[i].shape[1]] * 2 for i in owner]).reshape(-1, 4)
    # Written so that NaN is degenerate. Rounded annotations may be off by a pixel.
    degenerate = ~(boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    outside = ((boxes < -1) | (boxes > limits + 1)).any(dim=1)
    unknown = (labels < 1) | (labels > num_classes)
    wrong = (degenerate | outside | unknown).nonzero()
    if len(wrong):
        k = int(wrong[0])
        box, (width, height) = boxes[k].tolist(), limits[k, :2].int().tolist()
        if degenerate[k]:
            problem = f"box {box} does not have a positive width and height"
        elif outside[k]:
            problem = f"box {box} is outside of the image of {width} x {height} pixels (width x height)"
        else:
            problem = f"label {int(labels[k]) - 1} of box {box} is not between 0 and {num_classes - 1}"
        raise ValueError(f"{names[owner[k]]}: {problem}")
    return converted
