"""The optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from gh_downstream.training.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, parameters: Iterable[Tensor] | Iterable[dict[str, Any]]) -> Optimizer:
    """Build the optimizer of a run.

    Args:
        config: Kind, learning rate, momentum and weight decay.
        parameters: Parameters, or groups of them with settings of their own, such as ``{"params": [...], "lr": 1e-5}``.
    """
    if config.name == "sgd":
        return SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)


def learning_rate_factor(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return what the learning rate of a step is multiplied with, in ``[0, 1]`` for a ``gamma`` of at most 1.

    Args:
        config: Warm-up and schedule.
        step: Step, from 0.
        steps: Number of steps of the run.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        return (1 + math.cos(math.pi * (step - config.warmup_steps) / (steps - config.warmup_steps))) / 2
    return config.gamma ** bisect_right(config.milestones, step)


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Multiply the learning rate that each group was built with; that one stays in the group as ``initial_lr``."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
