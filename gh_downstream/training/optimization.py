"""The optimizer, and the learning rate as a pure function of the step."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import SGD, AdamW, Optimizer

from gh_downstream.training.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, parameters: Iterable[Tensor] | Iterable[dict[str, Any]]) -> Optimizer:
    """Build an optimizer of parameters, or of groups with settings of their own: ``{"params": [...], "lr": 0.1}``.

    Raises:
        ValueError: There are none.
    """
    trained: list[Any] = [*parameters]
    if not trained:
        raise ValueError("nothing is left to train: every parameter is frozen; freeze fewer")
    if config.name == "sgd":
        return SGD(trained, config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov)
    return AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)


def parameter_groups(model: nn.Module, config: OptimizerConfig, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Group the parameters that are trained by the pattern of their learning rate, which names them, and by decay.

    Biases, gains, scales and other vectors decay where ``decay_all`` says so alone.

    Args:
        model: The model.
        config: Learning rate and weight decay.
        factors: Factors of the learning rate by wildcards of parameters of the model; the first that fits counts.

    Raises:
        ValueError: A pattern of ``factors`` fits no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in factors:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"learning_rates: {pattern!r} fits no parameter; there are {', '.join(names[:8])}, ...")
    factors = {**factors, "*": factors.get("*", 1.0)}
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            pattern = next(pattern for pattern in factors if fnmatchcase(name, pattern))
            groups.setdefault((pattern, config.decay_all or parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": found,
            "lr": config.lr * factors[pattern],
            "weight_decay": config.weight_decay if decays else 0.0,
            "name": pattern,
        }
        # The main rate first: it is what the log calls the learning rate.
        for (pattern, decays), found in sorted(groups.items(), key=lambda group: group[0][0] != "*")
    ]


def learning_rate_factor(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return what the learning rate of a step, from 0, of a run of ``steps`` is multiplied with.

    It is in ``[0, 1]``, for the schedule ``step`` with a ``gamma`` of at most 1.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        return (1 + math.cos(math.pi * (step - config.warmup_steps) / (steps - config.warmup_steps))) / 2
    if config.schedule == "inv":
        return (1 + (0.001 if config.gamma is None else config.gamma) * step) ** -config.power
    return (0.1 if config.gamma is None else config.gamma) ** bisect_right(config.milestones, step)


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """Return ``lr`` of the first group and, where others differ, ``lr/NAME`` of each, by its ``name`` or its index."""
    rates = {f"lr/{group.get('name', k)}": group["lr"] for k, group in enumerate(optimizer.param_groups)}
    return {"lr": optimizer.param_groups[0]["lr"]} | (rates if len(set(rates.values())) > 1 else {})


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Multiply the learning rate that each group was built with; that one stays in the group as ``initial_lr``."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def clip_gradients(parameters: Iterable[Tensor], largest: float | None) -> Tensor:
    """Return the norm of the gradient over all parameters, which becomes ``largest`` if it is above that."""
    trained = list(parameters)
    norm = get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    if largest is not None:
        clip_grads_with_norm_(trained, largest, norm)
    return norm
