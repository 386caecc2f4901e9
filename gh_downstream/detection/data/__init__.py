"""Detection data: Cityscapes clear, foggy and mini, Sim10k, KITTI, BDD100K, any COCO-format JSON, and fog."""

try:
    import numpy  # noqa: F401  # asked for here, so that every module below may import it plainly
    import PIL.Image  # noqa: F401
except ImportError as error:
    raise ImportError("detection data need numpy and pillow: pip install 'gh_downstream[detection]'") from error

from gh_downstream.detection.data.bdd100k import BDD100K_CLASSES, load_bdd100k_daytime
from gh_downstream.detection.data.cars import load_kitti, load_sim10k
from gh_downstream.detection.data.cityscapes import load_cityscapes
from gh_downstream.detection.data.coco import load_coco
from gh_downstream.detection.data.records import CITYSCAPES_CLASSES, Annotation, DetectionDataset, Record

__all__ = [
    "BDD100K_CLASSES",
    "CITYSCAPES_CLASSES",
    "Annotation",
    "DetectionDataset",
    "Record",
    "load_bdd100k_daytime",
    "load_cityscapes",
    "load_coco",
    "load_kitti",
    "load_sim10k",
]
