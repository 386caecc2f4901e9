"""Pseudo-labels of a mean teacher, for every engine: which detections are labels, and what is learnt from them.

Tarvainen and Valpola, NIPS 2017, arXiv 1703.01780; for detection Unbiased Teacher (Liu et al., ICLR 2021, arXiv
2102.09480), and for detection in another domain Adaptive Teacher (Li et al., CVPR 2022, arXiv 2111.13216).
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

CLASSIFICATION = ("*cls*", "*classif*", "*objectness*")
"""Wildcards of the losses that are learnt from pseudo-labels by detectors with anchors: classification alone, as in
Unbiased Teacher, since a score says how sure the class is and not how well the box fits."""


def class_thresholds(threshold: float, by_class: Mapping[str, float], classes: Sequence[str], key: str) -> list[float]:
    """Return the least score of a label for each class.

    Args:
        threshold: That of the classes which ``by_class`` does not name.
        by_class: That of the others, by their names.
        classes: All names, in their order.
        key: The setting of ``by_class``, for messages.

    Raises:
        ValueError: There is no class of a name.
    """
    if unknown := [name for name in by_class if name not in classes]:
        raise ValueError(f"{key} has {unknown[0]!r}, but the classes are {', '.join(classes) or 'not known here'}")
    return [by_class.get(name, threshold) for name in classes]


def confident(scores: Tensor, classes: Tensor, threshold: float | Sequence[float]) -> Tensor:
    """Return which detections, of shape ``[n]``, are labels by a threshold: one number, or one for each class."""
    return scores >= (threshold if isinstance(threshold, (int, float)) else scores.new_tensor(threshold)[classes])


def pseudo_losses(
    losses: Mapping[str, Tensor], weight: float, learnt: Sequence[str] = CLASSIFICATION
) -> dict[str, Tensor]:
    """Return those losses on pseudo-labels that are learnt, by wildcards: as ``NAME_pseudo``, times their weight."""
    names = [name for name in losses if any(fnmatchcase(name, pattern) for pattern in learnt)]
    return {f"{name}_pseudo": weight * losses[name] for name in names}


def label_figures(scores: Sequence[Tensor]) -> dict[str, float]:
    """Return what is logged of the labels of a batch, by the scores of those of each image."""
    found = torch.cat([*scores])
    boxes = {"teacher/pseudo_boxes": len(found) / len(scores)}
    return boxes | ({"teacher/score": found.mean().item()} if len(found) else {})
