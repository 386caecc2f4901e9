"""The runs of :mod:`gh_downstream.detection.demo` on the torchvision engine."""

from __future__ import annotations

import json
from pathlib import Path

from gh_downstream.detection.demo import FinishedRun, Training
from gh_downstream.detection.evaluation import RESULTS
from gh_downstream.detection.torchvision.config import DetectionConfig
from gh_downstream.detection.torchvision.engine import build_trainer
from gh_downstream.training import load_config, read_metrics

DETECTOR = "slim Faster R-CNN of torchvision (a ResNet of four blocks with a feature pyramid)"


def train(training: Training) -> int:
    """Train, or resume what was cut off; returns the number of steps that were left to take."""
    overrides = [f"output={training.folder}", f"training.seed={training.seed}"]
    overrides += [f"source.root={training.data}", f"validation.foggy.root={training.data}"]
    if training.run in ("adapted", "gh", "gh++"):
        overrides.append(f"target.root={training.data}")
    if training.run != "burn-in":
        overrides.append(f"training.init_from={training.burn_in / 'last.pt'}")
    config = load_config(DetectionConfig, training.configs / "torchvision" / f"mini-{training.run}.yaml", overrides)
    trainer = build_trainer(config)
    first = trainer.step
    trainer.run()
    return trainer.step - first


def read_run(folder: Path) -> FinishedRun:
    """Read a finished training from its folder."""
    results, configuration = RESULTS.read(folder)
    lines = read_metrics(folder / "metrics.jsonl")
    evaluated = [line for line in lines if "foggy/ap50" in line]
    return FinishedRun(
        results["foggy"],
        configuration,
        json.loads((folder / "detections" / "foggy.json").read_text()),
        ([line["step"] for line in evaluated], [line["foggy/ap50"] for line in evaluated]),
        [line for line in lines if "gh/cosine" in line],
    )
