"""Ways to make one adaptation step of Detectron2's trainers, for :mod:`gh_downstream.training.benchmark`."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import Tensor

from gh_downstream.detection.detectron2.data import build_paired_train_loader
from gh_downstream.detection.detectron2.model import DomainAdaptation
from gh_downstream.detection.detectron2.trainer import load_cfg
from gh_downstream.harmonization import GHPlusPlus, Weighting, group_losses
from gh_downstream.harmonization.parameters import select_parameters
from gh_downstream.integrations.detectron2.hook import install_gradient_harmonization
from gh_downstream.training.benchmark import SWEEPS, Workload, published_backward


def adaptation_steps(config_file: str, overrides: Sequence[str] = ()) -> Workload:
    """Build the plain adaptation step of a configuration, and the same step harmonized in several ways.

    A step is ``run_step`` of Detectron2's ``SimpleTrainer``, or with ``SOLVER.AMP.ENABLED`` of its ``AMPTrainer``, on
    the first batch and from random weights: forward and backward passes, clipping, update, its metrics. ``GH`` is
    replaced, ``DA.BURN_IN_ITERS`` and ``MODEL.WEIGHTS`` are not read.

    Args:
        config_file: A configuration with target and alignment.
        overrides: Keys and values in turn, as on the command line of Detectron2.

    Raises:
        ValueError: The configuration aligns nothing, or asks for mixed precision without a GPU.
    """
    changed = ["GH.WEIGHTING", "none", "DA.BURN_IN_ITERS", "0", "MODEL.WEIGHTS", ""]
    cfg = load_cfg(config_file, [*overrides, *changed])
    if cfg.SOLVER.AMP.ENABLED and not torch.cuda.is_available():
        raise ValueError("SOLVER.AMP.ENABLED: Detectron2's mixed precision needs a GPU")
    seed_all_rng(max(cfg.SEED, 0))
    model = build_model(cfg).train()
    if not isinstance(model, DomainAdaptation) or model.alignment is None or not cfg.DATASETS.TARGET:
        raise ValueError("only an adaptation step can be harmonized: the configuration needs a target and an alignment")
    batch = next(iter(build_paired_train_loader(cfg)))
    optimizer = build_optimizer(cfg, model)
    trained: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    initial = [parameter.detach().clone() for parameter in trained]
    shared = [parameter for parameter in select_parameters(model.shared, model) if parameter.requires_grad]

    @torch.no_grad()
    def reset() -> None:
        torch._foreach_copy_(trained, initial)
        optimizer.zero_grad()
        seed_all_rng(max(cfg.SEED, 0))

    def step(trainer: SimpleTrainer, harmonize_features: Weighting | None = None) -> None:
        model.harmonize_features = harmonize_features
        with EventStorage():
            trainer.run_step()

    def plain() -> SimpleTrainer:
        trainer = (AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer)(model, itertools.repeat(batch), optimizer)
        trainer.iter = 0
        return trainer

    def harmonized(weighting: str, **settings: Any) -> Callable[[], None]:
        trainer = plain()
        install_gradient_harmonization(trainer, weighting=weighting, **settings)
        return partial(step, trainer)

    def published(trainer: SimpleTrainer) -> None:
        with EventStorage():
            losses = model(batch)
            optimizer.zero_grad()
            published_backward(shared, group_losses(losses))
            trainer._write_metrics(losses, 0.0)
            optimizer.step()

    model.harmonize_features = None
    steps: dict[str, Callable[[], object]] = {
        "plain sum": partial(step, plain()),
        "GH, exact": harmonized("gh"),
        "GH++, exact": harmonized("gh++"),
        f"GH++, exact, period {SWEEPS}": harmonized("gh++", period=SWEEPS),
        "GH++, fork at the features": partial(step, plain(), GHPlusPlus()),
    }
    if not cfg.SOLVER.AMP.ENABLED:  # The published code knows no mixed precision.
        steps["GH++ as published, three backward passes"] = partial(published, plain())
    with contextlib.suppress(ImportError):  # TorchJD is optional.
        steps["PCGrad of TorchJD, exact"] = harmonized("pcgrad")
    sizes = [sum(parameter.numel() for parameter in group) / 1e6 for group in (trained, shared)]
    targets = sum(entry.get("domain") == "target" for entry in batch)
    height, width = model.preprocess_image(batch).tensor.shape[2:]
    precision = "mixed precision" if cfg.SOLVER.AMP.ENABLED else "float32"
    description = [
        f"Detectron2, {type(model).__name__} of {cfg.MODEL.BACKBONE.NAME}; {sizes[0]:.2f} million parameters trained, "
        f"{sizes[1]:.2f} million of them shared",
        f"{len(batch) - targets} source and {targets} target images of {height} x {width} pixels, {precision}",
    ]
    return Workload(model, steps, reset, description)
