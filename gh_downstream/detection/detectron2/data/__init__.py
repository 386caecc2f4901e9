"""Data of two domains in Detectron2.

============  ================================================================================================
``register``  the data sets of this package in the catalogs, and any data set of the catalogs as our records
``mapper``    :class:`ImageMapper`: what the model is given of an image
``loader``    :class:`PairedLoader`: batches of source and target images, functions of the seed and the step
============  ================================================================================================
"""

from gh_downstream.detection.detectron2.data.loader import PairedLoader, TargetMapper, build_paired_train_loader
from gh_downstream.detection.detectron2.data.mapper import ImageMapper
from gh_downstream.detection.detectron2.data.register import (
    check_files,
    classes_of,
    dataset_of,
    load_dicts,
    register_coco_datasets,
    register_datasets,
)

__all__ = [
    "ImageMapper",
    "PairedLoader",
    "TargetMapper",
    "build_paired_train_loader",
    "check_files",
    "classes_of",
    "dataset_of",
    "load_dicts",
    "register_coco_datasets",
    "register_datasets",
]
