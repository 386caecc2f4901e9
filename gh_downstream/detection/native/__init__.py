"""The native engine: domain-adaptive detectors that need nothing but PyPI.

==============  ==============================================================================================
``detector``    :class:`DetectorConfig` and :func:`build_detector`: torchvision's Faster R-CNN, RetinaNet and FCOS
``model``       :class:`DomainAdaptiveDetector`: one of them, with the alignment of its features
``detr``        the same around DETRs of transformers
``data``        batches of source and target images, and their annotations, checked
``teacher``     :class:`MeanTeacher`: what labels the target
``config``      what a training or an evaluation is configured by
``engine``      training and evaluation
==============  ==============================================================================================
"""

try:
    import torchvision  # noqa: F401
except ImportError as error:
    raise ImportError("the native engine needs torchvision: pip install gh_downstream[detection]") from error

from gh_downstream.detection.native.detector import DetectorConfig, build_detector, freeze_batch_norm
from gh_downstream.detection.native.model import (
    DomainAdaptiveDense,
    DomainAdaptiveDetector,
    DomainAdaptiveFasterRCNN,
)

__all__ = [
    "DetectorConfig",
    "DomainAdaptiveDense",
    "DomainAdaptiveDetector",
    "DomainAdaptiveFasterRCNN",
    "build_detector",
    "freeze_batch_norm",
]
