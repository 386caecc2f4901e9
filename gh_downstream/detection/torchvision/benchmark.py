"""Ways to make one adaptation step of the torchvision engine, for :mod:`gh_downstream.training.benchmark`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from gh_downstream.detection.torchvision.config import DetectionConfig
from gh_downstream.detection.torchvision.data import StepBatches
from gh_downstream.detection.torchvision.engine import build_model
from gh_downstream.harmonization import GH, GHPlusPlus, Harmonizer, Weighting, build_weighting
from gh_downstream.harmonization.parameters import select_parameters
from gh_downstream.training import HarmonizationConfig, build_optimizer
from gh_downstream.training.benchmark import SWEEPS, Workload, published_backward

Backward = Callable[[dict[str, Tensor]], object]
"""Leaves a gradient of the losses ``alignment`` and ``task`` in ``.grad`` of all parameters."""


def adaptation_steps(config: DetectionConfig) -> Workload:
    """Build the plain adaptation step of a configuration, and the same step harmonized in several ways.

    A step is the forward pass on the first batch, backward passes, gradient clipping and the optimizer's update, in
    float32 and from the initial weights: ``training.init_from`` is not read, ``harmonization`` is replaced.

    Args:
        config: A training with target and alignment.

    Raises:
        ValueError: The configuration aligns nothing, or asks for another precision.
    """
    if config.target is None:
        raise ValueError("only an adaptation step can be harmonized: the configuration needs target and alignment")
    if config.training.mixed_precision != "no":
        raise ValueError("the benchmark runs in float32: set training.mixed_precision=no")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = config.source.load()
    target = config.target.load(source.classes, labels=False)
    batch = StepBatches(source, target, config.batch_size, config.flip, config.training.seed)(0, rank=0, ranks=1)
    del batch["file_names"]
    batch = send_to_device(batch, device)
    model = build_model(dataclasses.replace(config, harmonization=HarmonizationConfig())).to(device).train()
    trained: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    initial = [parameter.detach().clone() for parameter in trained]
    shared = [parameter for parameter in select_parameters(model.shared, model) if parameter.requires_grad]
    optimizer = build_optimizer(config.optimizer, trained)
    clip_norm = config.optimizer.clip_norm

    @torch.no_grad()
    def reset() -> None:
        torch._foreach_copy_(trained, initial)
        optimizer.zero_grad()
        torch.manual_seed(config.training.seed)
        model.reports.clear()

    def step(backward: Backward, harmonize_features: Weighting | None = None) -> None:
        model.harmonize_features = harmonize_features
        sides = model(**batch)
        backward({side: torch.stack(list(losses.values())).sum() for side, losses in sides.items()})
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, clip_norm)
        optimizer.step()

    def harmonized(weighting: Weighting, period: int = 1) -> Callable[[], None]:
        return partial(step, Harmonizer(weighting, model.shared, model=model, period=period).backward)

    steps: dict[str, Callable[[], object]] = {
        "plain sum": partial(step, _plain),
        "GH, exact": harmonized(GH()),
        "GH++, exact": harmonized(GHPlusPlus()),
        f"GH++, exact, period {SWEEPS}": harmonized(GHPlusPlus(), period=SWEEPS),
        "GH++, fork at the features": partial(step, _plain, GHPlusPlus()),
        "GH++ as published, three backward passes": partial(step, partial(published_backward, shared)),
    }
    with contextlib.suppress(ImportError):  # TorchJD is optional.
        steps["PCGrad of TorchJD, exact"] = harmonized(build_weighting("pcgrad"))
    height, width = model.detector.transform(batch["source_images"])[0].tensors.shape[2:]
    count = config.batch_size
    detector = f"Faster R-CNN, {config.detector.backbone}, feature pyramid of {config.detector.fpn_channels} channels"
    sizes = [sum(parameter.numel() for parameter in group) / 1e6 for group in (trained, shared)]
    description = [
        f"{detector}; {sizes[0]:.2f} million parameters trained, {sizes[1]:.2f} million of them shared",
        f"{count} source and {count} target images of {height} x {width} pixels, float32",
    ]
    return Workload(model, steps, reset, description)


def _plain(losses: dict[str, Tensor]) -> None:
    torch.stack(list(losses.values())).sum().backward()
