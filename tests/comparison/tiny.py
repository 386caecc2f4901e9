"""A comparison of a few steps, and runs whose numbers are known."""

from pathlib import Path

import yaml

from gh_downstream.comparison.presets import Preset, preset_of_config
from gh_downstream.comparison.results import FinishedRun, Group, Row
from gh_downstream.retrieval.data import make_mini_scenes
from gh_downstream.training.configs import find_config

PRESET = Preset("digits", "classification", "classification/digits.yaml", "target/accuracy")


def tiny_retrieval(folder):
    """The preset of a retrieval of four steps, in a folder of its own with its data."""
    scenes = folder / "scenes"
    make_mini_scenes(scenes, train=60, target=40, val=8, test=24)
    content = {
        "_base_": str(find_config("retrieval/mini")),
        "batch_size": 16,
        "source": {"path": str(scenes / "source" / "train.csv")},
        "target": {"path": str(scenes / "target" / "train.jsonl")},
        "validation": {d: {"path": str(scenes / d / f"test.{e}")} for d, e in (("source", "csv"), ("target", "jsonl"))},
        "training": {"steps": 4, "evaluate_every": 2, "log_every": 1, "checkpoint_every": 2},
        "optimizer": {"warmup_steps": 1, "schedule": "step"},
    }
    path = folder / "scenes-small.yaml"
    path.write_text(yaml.safe_dump(content))
    return preset_of_config(path, "retrieval")


def finished_run(weighting, value, gain=1.0):
    """A run of nine steps with one evaluation in the middle and one at its end."""
    lines = []
    for step in range(1, 10):
        angle = 120.0 - 10 * step
        line = {"step": step, "gh/cosine": -0.5, "gh/angle": angle, "gh/gain": gain, "gh/conflict": float(angle > 90)}
        line |= {"gh/opposed": float(weighting == "sum"), "gh/norm/alignment": 1.0, "gh/norm/task": 4.0}
        lines.append(line | {"gh/weight/alignment": 1.0 + step, "gh/weight/task": -1.0})
        if step in (5, 9):
            lines.append({"step": step, PRESET.metric: value if step == 9 else value / 2})
    return FinishedRun(Path(), lines, value, best=value)


def row(weighting, values, scope="shared", gain=1.0):
    """The row of a weighting from the metric of each seed."""
    seeds = values if isinstance(values, dict) else dict(enumerate(values))
    name = f"{weighting} (all)" if scope == "all" else weighting
    return Row(name, weighting, scope, {seed: finished_run(weighting, value, gain) for seed, value in seeds.items()})


def group(*rows):
    """Rows of one method."""
    return Group(PRESET, "cdan", rows, Path())
