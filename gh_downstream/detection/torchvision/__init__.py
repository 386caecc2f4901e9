"""The torchvision engine: a domain-adaptive Faster R-CNN that needs nothing but PyPI."""

from gh_downstream.detection.torchvision.model import (
    DetectorConfig,
    DomainAdaptiveFasterRCNN,
    build_detector,
    freeze_batch_norm,
)

__all__ = ["DetectorConfig", "DomainAdaptiveFasterRCNN", "build_detector", "freeze_batch_norm"]
