"""Ways to make one adaptation step of the torchvision engine, for :mod:`gh_downstream.training.benchmark`."""

from __future__ import annotations

import dataclasses

from gh_downstream.detection.torchvision.config import DetectionConfig
from gh_downstream.detection.torchvision.data import StepBatches
from gh_downstream.detection.torchvision.engine import build_model
from gh_downstream.harmonization import HarmonizationConfig
from gh_downstream.training import build_optimizer
from gh_downstream.training.benchmark import Workload, adaptation_workload


def adaptation_steps(config: DetectionConfig) -> Workload:
    """Build the adaptation steps of a configuration on its first batch, from its initial weights.

    ``training.init_from`` is not read, ``harmonization`` is replaced; the steps are those of
    :func:`~gh_downstream.training.benchmark.adaptation_workload`.

    Args:
        config: A training with target and alignment.

    Raises:
        ValueError: The configuration aligns nothing, or asks for another precision.
    """
    if config.target is None:
        raise ValueError("only an adaptation step can be harmonized: the configuration needs target and alignment")
    source = config.source.load()
    target = config.target.load(source.classes, labels=False)
    batch = StepBatches(source, target, config.batch_size, config.flip, config.training.seed)(0, rank=0, ranks=1)
    del batch["file_names"]
    model = build_model(dataclasses.replace(config, harmonization=HarmonizationConfig()))
    optimizer = build_optimizer(config.optimizer, [p for p in model.parameters() if p.requires_grad])
    height, width = model.detector.transform(batch["source_images"])[0].tensors.shape[2:]
    count = config.batch_size
    return adaptation_workload(
        config,
        model,
        optimizer,
        batch,
        network=(
            f"Faster R-CNN, {config.detector.backbone}, feature pyramid of {config.detector.fpn_channels} channels"
        ),
        data=f"{count} source and {count} target images of {height} x {width} pixels",
    )
