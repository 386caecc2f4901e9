"""What is wrong with a configuration, said before anything is trained or evaluated."""

import fnmatch
import logging
import os
import re

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from gh_downstream.data.images import check_readable
from gh_downstream.detection.detectron2.config import alignment_of, default_cfg
from gh_downstream.detection.detectron2.data import check_files, classes_of, dataset_of, load_dicts
from gh_downstream.detection.detectron2.evaluation import WITHOUT_EFFECT
from gh_downstream.harmonization.checks import check_numbers, check_one_of
from gh_downstream.integrations.detectron2 import settings_of
from gh_downstream.training.config import changes
from gh_downstream.training.configs import training_of

logger = logging.getLogger(__name__)

_RANGES = {
    "": ("SEED", "MODEL.PIXEL_MEAN", "*.BOUNDARY_THRESH", "*.IOU_LABELS", "*.ANGLES", "*.CONV_DIMS"),
    "> 0": (
        *("SOLVER.BASE_LR", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "SOLVER.CLIP_GRADIENTS.NORM_TYPE", "INPUT.CROP.SIZE"),
        *("MODEL.PIXEL_STD", "*.ANCHOR_GENERATOR.SIZES", "*.ASPECT_RATIOS", "*.BBOX_REG_WEIGHTS"),
    ),
    ">= 1": (
        *("SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.IMS_PER_BATCH", "SOLVER.NUM_DECAYS", "GH.LOG_PERIOD"),
        *("INPUT.MAX_SIZE_*", "TEST.DETECTIONS_PER_IMAGE", "TEST.AUG.M*", "TEST.PRECISE_BN.NUM_ITER", "*TOPK_*"),
        *("*.NUM_CLASSES", "*.BATCH_SIZE_PER_IMAGE", "*.POOLER_RESOLUTION", "*_CHANNELS", "*.CONV_DIM", "*.FC_DIM"),
        *("*_GROUPS", "*_PER_GROUP", "*_DILATION"),
    ),
    "whole, >= 1": ("SOLVER.STEPS",),
    "whole, >= 0": ("INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST"),  # 0 keeps the size of an image
    ">= 0, <= 5": ("MODEL.BACKBONE.FREEZE_AT",),
    ">= 0, < 1": ("SOLVER.MOMENTUM", "*.ANCHOR_GENERATOR.OFFSET"),
    ">= 0, <= 1": (
        *("TEACHER.MOMENTUM", "TEACHER.*_THRESHOLD*", "*.POSITIVE_FRACTION", "*.IOU_THRESHOLDS", "*.IOUS"),
        *("*.NMS_THRESH*", "*.SCORE_THRESH_*", "*.FOCAL_LOSS_ALPHA", "*.PRIOR_PROB"),
    ),
}
"""Of numbers, by wildcards of their keys. Others of Detectron2 and of ours are not negative."""

_DECISIVE = (
    *("MODEL.", "DATASETS.TRAIN", "DATASETS.TARGET", "DATASETS.CLASSES"),
    *("SOLVER.", "SEED", "GH.", "DA.", "TEACHER."),
)
_FREE = {*WITHOUT_EFFECT, "MODEL.WEIGHTS", "SOLVER.MAX_ITER", "SOLVER.STEPS"}


def check_values(cfg: CfgNode) -> None:
    """Raise a ValueError if a number is not finite, a setting cannot be used, or there is no such device."""
    values, defaults = ({key: value for key, (_, value) in changes({}, node).items()} for node in (cfg, default_cfg()))
    for key in values.keys() & defaults.keys() - {"SOLVER.STEPS"}:
        if values[key] in ([], ()) and defaults[key]:
            raise ValueError(f"{key} is empty; the default is {defaults[key]}")
    matching = {wanted: re.compile("|".join(map(fnmatch.translate, keys))).match for wanted, keys in _RANGES.items()}
    ranges = {key: wanted for wanted, match in matching.items() for key in values if match(key)}
    if cfg.INPUT.CROP.TYPE.startswith("relative"):
        ranges["INPUT.CROP.SIZE"] = "> 0, <= 1"
    check_numbers({key: value for key, value in values.items() if key in defaults}, ">= 0", **ranges)
    check_numbers({key: value for key, value in values.items() if key not in defaults}, "", **ranges)
    settings_of(cfg), alignment_of(cfg)
    check_one_of("INPUT.MIN_SIZE_TRAIN_SAMPLING", cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, ("choice", "range"))
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and not (len(sizes) == 2 and sizes[0] <= sizes[1]):
        raise ValueError(f"INPUT.MIN_SIZE_TRAIN {sizes}: MIN_SIZE_TRAIN_SAMPLING range takes the least and the largest")
    check_one_of("INPUT.CROP.TYPE", cfg.INPUT.CROP.TYPE, ("relative", "relative_range", "absolute", "absolute_range"))
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise ValueError(f"MODEL.DEVICE {cfg.MODEL.DEVICE}: there is no such device; take cuda or cpu") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"MODEL.DEVICE {cfg.MODEL.DEVICE}: torch finds {torch.cuda.device_count()} GPU(s) here; take "
            "one of them, or cpu"
        )


def check_training(cfg: CfgNode, resume: bool) -> None:
    """Check what would show late in a training, or not at all.

    Raises:
        FileNotFoundError, ValueError: What is wrong, and how to mend it.
    """
    check_folder(cfg, resume)
    if cfg.MODEL.WEIGHTS and not (resume and has_checkpoint(cfg)):
        _check_weights(cfg)
    harmonized = cfg.GH.WEIGHTING != "none" and cfg.GH.MEASURE == "parameters"
    if cfg.SOLVER.AMP.ENABLED and torch.device(cfg.MODEL.DEVICE).type == "cpu" and not harmonized:
        raise ValueError(
            "SOLVER.AMP.ENABLED on a CPU: Detectron2's own step needs CUDA; set GH.WEIGHTING (sum is the plain step) "
            "and GH.MEASURE parameters"
        )
    adapts = cfg.MODEL.META_ARCHITECTURE.startswith("DomainAdaptive")
    if cfg.DATASETS.TARGET and not adapts:
        raise ValueError(
            f"DATASETS.TARGET is set, but MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} does not adapt: "
            "take DomainAdaptiveRCNN or DomainAdaptiveRetinaNet"
        )
    if adapts and (cfg.DA.METHOD != "none" or cfg.TEACHER.ENABLED):
        if not cfg.DATASETS.TARGET:
            raise ValueError("DA.METHOD and TEACHER need unlabelled images: name their data sets in DATASETS.TARGET")
        if cfg.DA.BURN_IN_ITERS >= cfg.SOLVER.MAX_ITER:
            raise ValueError(
                f"DA.BURN_IN_ITERS {cfg.DA.BURN_IN_ITERS} leaves nothing of SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER} for "
                "the adaptation: set it lower"
            )
    _check_classes(cfg)
    if comm.is_main_process():
        for name in cfg.DATASETS.TEST:
            dataset = dataset_of(name)
            check_files([name], dataset.records)
            if dataset.num_boxes == 0:
                raise ValueError(f"DATASETS.TEST {name} has no labels, and so no average precision")


def check_evaluation(cfg: CfgNode, resume: bool) -> None:
    """Check that there is something to evaluate, and something to evaluate it on; errors as :func:`check_training`."""
    check_values(cfg)
    if resume and not has_checkpoint(cfg):
        raise FileNotFoundError(
            f"{cfg.OUTPUT_DIR} has no last_checkpoint to evaluate: name the file in MODEL.WEIGHTS, without --resume"
        )
    if not resume and not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "MODEL.WEIGHTS is empty, and random weights are not worth an evaluation: name a file, or give --resume for "
            "the last checkpoint in OUTPUT_DIR"
        )
    if not resume:
        _check_weights(cfg)
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST names no data set to evaluate on")
    _check_classes(cfg)


def check_data(cfg: CfgNode) -> None:
    """Read all data of a configuration and decode every image of them; nothing is trained.

    Raises:
        FileNotFoundError, ValueError: Data are missing, cannot be read, or do not fit each other.
    """
    _check_classes(cfg)
    target = cfg.DATASETS.TARGET
    names = dict.fromkeys((*cfg.DATASETS.TRAIN, *target, *cfg.DATASETS.TEST))
    images = []
    for name in names:
        dicts = load_dicts(name, labels=name not in target)
        check_files([name], dicts)
        images += [PathManager.get_local_path(image["file_name"]) for image in dicts]
    logger.info("all %d images can be read", check_readable(images))


def check_folder(cfg: CfgNode, resume: bool) -> None:
    """Check the values, and that what another training has left in ``OUTPUT_DIR`` is not lost or taken for another's.

    Raises:
        ValueError: A value cannot be used; or there is a checkpoint, but it is not to be resumed, or not that of this
            configuration.
    """
    check_values(cfg)
    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if not comm.is_main_process() or not has_checkpoint(cfg):
        return
    if not resume:
        raise ValueError(
            f"{cfg.OUTPUT_DIR} has the checkpoints of a training: go on with --resume, or choose another OUTPUT_DIR"
        )
    if not os.path.isfile(path):
        return
    with open(path) as file:
        found = changes(yaml.safe_load(file), yaml.safe_load(cfg.dump()))
    decisive = {key: pair for key, pair in found.items() if key.startswith(_DECISIVE) and key not in _FREE}
    if decisive:
        listed = ", ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in decisive.items())
        raise ValueError(f"{cfg.OUTPUT_DIR} belongs to another configuration: {listed}; choose another OUTPUT_DIR")


def has_checkpoint(cfg: CfgNode) -> bool:
    """Whether there is a training to resume."""
    return os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))


def _check_weights(cfg: CfgNode) -> None:
    weights = cfg.MODEL.WEIGHTS
    if "://" not in weights and not os.path.isfile(PathManager.get_local_path(weights.partition("?")[0])):
        cure = training_of(os.path.dirname(weights)) or "train what it comes from first"
        raise FileNotFoundError(f"MODEL.WEIGHTS {weights}: there is no such file; {cure}")


def _check_classes(cfg: CfgNode) -> None:
    """Another number of classes fails deep in the model; another order would be evaluated without a word."""
    sets = {name: classes_of(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
    known = [(name, classes) for name, classes in sets.items() if classes]
    if not known:
        return
    first, classes = known[0]
    for name, others in known[1:]:
        if others != classes:
            raise ValueError(
                f"data set {name} has the classes {', '.join(others)}, but {first} has {', '.join(classes)}: names and "
                "order have to be the same"
            )
    key = "RETINANET" if "RetinaNet" in cfg.MODEL.META_ARCHITECTURE else "ROI_HEADS"
    if len(classes) != cfg.MODEL[key].NUM_CLASSES:
        raise ValueError(
            f"MODEL.{key}.NUM_CLASSES is {cfg.MODEL[key].NUM_CLASSES}, but {first} has {len(classes)} classes: "
            f"{', '.join(classes)}"
        )
