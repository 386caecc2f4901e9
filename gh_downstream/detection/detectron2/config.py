"""What domain adaptation adds to a Detectron2 config."""

import re
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from gh_downstream.detection.alignment import AlignmentConfig
from gh_downstream.detection.strong_weak import StrongWeakConfig
from gh_downstream.integrations.detectron2.config import add_gh_config, with_keys


def default_cfg() -> CfgNode:
    """Return Detectron2's defaults with the nodes of this package, on a GPU where there is one; not frozen."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    add_gh_config(cfg)
    add_adaptation_config(cfg)
    return cfg


def add_adaptation_config(cfg: CfgNode) -> None:
    """Add the keys of domain adaptation and their defaults.

    ===============================  ==============================================================================
    ``DA.METHOD``                    ``image_instance`` (Domain Adaptive Faster R-CNN), ``strong_weak`` or ``none``
    ``DA.FEATURES``                  Outputs of the backbone to align; ``[]`` for those that the region heads, or
                                     the dense head, read. ``strong_weak`` takes the first and the last of them
    ``DA.BURN_IN_ITERS``             Iterations on source alone, before alignment and pseudo-labels begin
    ``DA.IMAGE_INSTANCE``            The attributes of :class:`~gh_downstream.detection.alignment.AlignmentConfig`
    ``DA.STRONG_WEAK``               Those of :class:`~gh_downstream.detection.strong_weak.StrongWeakConfig`
    ``DATASETS.TARGET``              Unlabelled data sets
    ``DATASETS.COCO``                Data sets to register: ``((name, JSON file, image folder), ...)``; a target may be
                                     a folder without a JSON, ``(name, '', image folder)``
    ``DATASETS.CLASSES``             Classes of ``DATASETS.COCO`` in their order, with aliases where data sets call them
                                     otherwise: ``['person', {'car': ['vehicle']}]``; empty for those in common
    ``DATASETS.OUTSIDE_ROOT``        Allow a JSON of ``DATASETS.COCO`` to name images outside of its folder
    ``SOLVER.IMS_PER_BATCH_TARGET``  Target images of a batch, of all processes together; 0 for as many as
                                     ``SOLVER.IMS_PER_BATCH``, which counts the source images
    ``TEACHER.ENABLED``              A mean teacher labels the target
    ``TEACHER.MOMENTUM``             Share of itself that the teacher keeps at each step
    ``TEACHER.SCORE_THRESHOLD``      Detections of the teacher with a lower score are no labels
    ``TEACHER.CLASS_THRESHOLDS``     That of single classes, by their names: ``{train: 0.5}``
    ``TEACHER.LOSS_WEIGHT``          Weight of the losses on pseudo-labels
    ``MODEL.VGG.OUT_FEATURES``       Outputs of ``build_vgg16_backbone``: some of ``vgg1`` to ``vgg5``
    ``MODEL.TIMM.NAME``              The network of ``build_timm_backbone`` and ``build_timm_fpn_backbone``
    ``MODEL.TIMM.WEIGHTS``           Its weights: ``pip:NAME`` of an installed package, a file, or empty for none
    ``MODEL.TIMM.FROZEN_NORM``       Its batch normalization keeps its statistics and affine maps
    ===============================  ==============================================================================

    Args:
        cfg: The config, not frozen. Nothing changes for the models of Detectron2.
    """
    cfg.DA = CfgNode({"METHOD": "image_instance", "FEATURES": [], "BURN_IN_ITERS": 0})
    for method, config in _ALIGNMENTS.items():
        cfg.DA[method.upper()] = CfgNode({name.upper(): value for name, value in vars(config()).items()})
    cfg.DATASETS.TARGET = ()
    cfg.DATASETS.COCO = ()
    cfg.DATASETS.CLASSES = ()
    cfg.DATASETS.OUTSIDE_ROOT = False
    cfg.SOLVER.IMS_PER_BATCH_TARGET = 0
    cfg.TEACHER = CfgNode({"ENABLED": False, "MOMENTUM": 0.9996, "SCORE_THRESHOLD": 0.8, "LOSS_WEIGHT": 1.0})
    cfg.TEACHER.CLASS_THRESHOLDS = CfgNode(new_allowed=True)
    cfg.MODEL.VGG = CfgNode({"OUT_FEATURES": ["vgg5"]})
    cfg.MODEL.TIMM = CfgNode({"NAME": "tf_efficientnet_lite0", "WEIGHTS": "", "FROZEN_NORM": True})


def documented_keys() -> Iterator[tuple[str, Any, str]]:
    """Yield what the table of :func:`add_adaptation_config` documents: a key, its default and its text."""
    cfg = default_cfg()
    for key, text in _TABLE_ROW.findall(add_adaptation_config.__doc__ or ""):
        yield key, reduce(lambda node, part: node[part], key.split("."), cfg), " ".join(text.split())


def library_keys() -> Iterator[tuple[str, Any]]:
    """Yield the keys of Detectron2's own, with their defaults."""

    def leaves(node: CfgNode, prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in node.items():
            yield from leaves(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [(prefix + name, value)]

    return leaves(get_cfg(), "")


def resolved_config(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return a file with what it is based on, overrides and every default."""
    cfg = default_cfg()
    cfg.merge_from_file(str(path), allow_unsafe=False)
    cfg.merge_from_list(override_words(overrides))
    return yaml.safe_load(cfg.dump())


def read_config(path: Path) -> dict[str, Any]:
    """Return a file merged into what it is based on, without the defaults of Detectron2."""
    return CfgNode.load_yaml_with_base(str(path), allow_unsafe=False)


def override_words(overrides: Sequence[str]) -> list[str]:
    """Return words ``KEY=VALUE`` and pairs ``KEY VALUE`` as keys and values in turn; a ``ValueError`` if one lacks."""
    words: list[str] = []
    for override in overrides:  # no key has a "=" in it; a value may, such as a path
        words += [override] if len(words) % 2 else override.split("=", 1)
    if len(words) % 2:
        raise ValueError(f"override {words[-1]!r}: expected KEY=VALUE, such as SOLVER.MAX_ITER=100")
    return words


def check_node(cfg: CfgNode, key: str) -> None:
    """Raise a ValueError if a config lacks a node or key that :func:`add_adaptation_config` adds."""
    *nodes, name = key.split(".")
    if name not in reduce(getattr, nodes, cfg):
        raise ValueError(
            f"the config has no node {key}: call add_adaptation_config(cfg) before the file of the config is merged"
        )


def alignment_of(cfg: CfgNode) -> AlignmentConfig | StrongWeakConfig | None:
    """Return what a config aligns; None for ``DA.METHOD none``.

    Raises:
        ValueError: The config has no node ``DA``, its method is unknown, or a value in it is out of its range.
    """
    check_node(cfg, "DA")
    method = cfg.DA.METHOD
    if method == "none":
        return None
    if method not in _ALIGNMENTS:
        raise ValueError(f"DA.METHOD is one of none, {', '.join(_ALIGNMENTS)}, got {method!r}")
    values: dict[str, Any] = {name.lower(): value for name, value in cfg.DA[method.upper()].items()}
    try:
        return _ALIGNMENTS[method](**values)
    except ValueError as error:
        raise ValueError(with_keys(str(error), f"DA.{method.upper()}", values)) from None


_ALIGNMENTS: dict[str, type[AlignmentConfig] | type[StrongWeakConfig]] = {
    "image_instance": AlignmentConfig,
    "strong_weak": StrongWeakConfig,
}

# A key in double backquotes, and its text, whose further lines are indented as far as the first.
_TABLE_ROW = re.compile(r"^ *``([\w.]+)``  +((?:.+\n)(?: {33,}.*\n)*)", re.MULTILINE)
