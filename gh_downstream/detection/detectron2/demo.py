"""The runs of :mod:`gh_downstream.detection.demo` on Detectron2."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import torch

from gh_downstream.detection.demo import FinishedRun, Training
from gh_downstream.detection.detectron2.trainer import load_cfg
from gh_downstream.detection.detectron2.trainer import train as train_cfg
from gh_downstream.detection.evaluation import RESULTS

DETECTOR = "slim Faster R-CNN of Detectron2 (a ResNet-50 with a feature pyramid, at an eighth of the usual width)"

_STREETS = "mini_cityscapes"
_FOGGY = f"{_STREETS}_foggy_0.02_val"
_CONFIGS = {"adapted": "da", "gh": "da_gh", "gh++": "da_gh++"}


def train(training: Training) -> int:
    """Train, or resume what was cut off; returns the number of iterations that were left to take.

    Raises:
        ValueError: The folder of the data is not called ``mini_cityscapes``, the name that Detectron2 knows it by.
    """
    data, folder = training.data.absolute(), training.folder
    if data.name != _STREETS:
        raise ValueError(f"{data}: on Detectron2 the streets have to be in a folder called {_STREETS}; rename it")
    os.environ["DETECTRON2_DATASETS"] = str(data.parent)
    overrides = ["OUTPUT_DIR", str(folder), "SEED", str(training.seed)]
    if training.run != "burn-in":
        overrides += ["MODEL.WEIGHTS", str(training.burn_in / "model_final.pth")]
    config = training.configs / "mini" / f"{_CONFIGS.get(training.run, training.run)}.yaml"
    cfg = load_cfg(str(config), overrides)
    (folder / "config.yaml").write_text(cfg.dump())
    done = _iterations_done(folder)
    train_cfg(cfg, resume=True)
    return cfg.SOLVER.MAX_ITER - done


def read_run(folder: Path) -> FinishedRun:
    """Read a finished training from its folder."""
    results, configuration = RESULTS.read(folder)
    lines = read_metrics(folder / "metrics.json")
    # Detectron2 names the data set only where there are several.
    ap50 = {line["step"]: line[key] for line in lines for key in ("bbox/AP50", f"{_FOGGY}/bbox/AP50") if key in line}
    return FinishedRun(
        results[_FOGGY],
        configuration,
        json.loads((folder / "detections" / f"{_FOGGY}.json").read_text()),
        (list(ap50.keys()), list(ap50.values())),
        [line for line in lines if "gh/cosine" in line],
    )


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read ``metrics.json`` as Detectron2 writes it, over all times that a training was resumed.

    Args:
        path: The file.

    Returns:
        One dictionary for each step with its metrics, those that are not finite left out, and ``step``, the number of
        iterations done by then. What is written after the last iteration is of that step.
    """
    iterations: dict[int, dict[str, float]] = {}
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # Cut off by a kill; the resumed training writes these iterations again.
            continue
        iterations[line["iteration"]] = iterations.get(line["iteration"], {}) | line
    last = max((iteration for iteration, line in iterations.items() if "total_loss" in line), default=0)
    steps: dict[int, dict[str, float]] = {}
    for iteration, line in sorted(iterations.items()):
        step = min(iteration, last) + 1
        finite = {key: value for key, value in line.items() if key != "iteration" and math.isfinite(value)}
        steps[step] = steps.get(step, {"step": step}) | finite
    return list(steps.values())


def _iterations_done(folder: Path) -> int:
    last = folder / "last_checkpoint"
    if not last.exists():
        return 0
    checkpoint = torch.load(folder / last.read_text().strip(), map_location="cpu", weights_only=True)
    return checkpoint["iteration"] + 1
