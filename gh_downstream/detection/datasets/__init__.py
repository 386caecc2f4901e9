"""Detection data: Cityscapes clear and foggy, any COCO-format JSON, fog, and a mini version made here."""

try:
    import numpy  # noqa: F401  # asked for here, so that every module below may import it plainly
    import PIL.Image  # noqa: F401
except ImportError as error:
    raise ImportError("detection data need numpy and pillow: pip install 'gh_downstream[detection]'") from error

from gh_downstream.detection.datasets.cityscapes import DEFAULT_FOG_DENSITY, load_cityscapes
from gh_downstream.detection.datasets.coco import load_coco
from gh_downstream.detection.datasets.records import CITYSCAPES_CLASSES, Annotation, DetectionDataset, Record

__all__ = [
    "CITYSCAPES_CLASSES",
    "DEFAULT_FOG_DENSITY",
    "Annotation",
    "DetectionDataset",
    "Record",
    "load_cityscapes",
    "load_coco",
]
