"""Small domain-adaptive detectors, and batches of random images for them."""

import pytest
import torch

pytest.importorskip("torchvision", reason="needs pip install 'gh_downstream[detection]'")

from gh_downstream.detection.alignment import AlignmentConfig
from gh_downstream.detection.native import DetectorConfig, DomainAdaptiveFasterRCNN, build_detector

SMALL_ALIGNMENT = {"image_hidden": 16, "image_std": 0.1, "instance_hidden": 16, "instance_regions": 8}


def small(**changes):
    """The detector of the mini configurations for smaller images, with live batch normalization."""
    settings = {
        "backbone": "slim",
        "frozen_batch_norm": False,
        "min_size": 64,
        "max_size": 128,
        "fpn_channels": 32,
        "box_head_features": 128,
        "anchor_sizes": [8, 16, 32, 64, 128],
        "rpn_batch_size": 64,
        "rpn_pre_nms_top_n": 200,
        "rpn_post_nms_top_n": 100,
        "roi_batch_size": 64,
        "detections_per_image": 50,
    }
    return DetectorConfig(**settings | changes)


def adaptive(harmonize_features=None, config=None, **changes):
    """A small frozen detector with alignment, the same at every call."""
    torch.manual_seed(0)
    detector = build_detector(config or small(frozen_batch_norm=True))
    return DomainAdaptiveFasterRCNN(detector, AlignmentConfig(**SMALL_ALIGNMENT | changes), harmonize_features)


def images(count, height=64, width=128):
    return [torch.rand(3, height, width) for _ in range(count)]


def targets(count):
    boxes = torch.tensor([[10.0, 8.0, 40.0, 40.0], [60.0, 20.0, 100.0, 60.0]])
    return [{"boxes": boxes.clone(), "labels": torch.tensor([0, 7])} for _ in range(count)]


def losses_of(model, *batch, **more):
    """Losses with the random samples of anchors and regions, and dropout, held."""
    torch.manual_seed(1)
    return model(*batch, **more)


def total(losses):
    return sum(loss for group in losses.values() for loss in group.values())


def reached(loss, model):
    """Names and gradients of the parameters that a loss reaches."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), retain_graph=True, allow_unused=True)
    return {name: gradient for name, gradient in zip(trained, found, strict=True) if gradient is not None}
