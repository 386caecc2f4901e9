"""What a training on Detectron2 logged."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.evaluation.testing import flatten_results_dict


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Read ``metrics.json`` as Detectron2 writes it, over all times that a training was resumed.

    Args:
        path: The file.

    Returns:
        One dictionary for each step with its metrics, those that are not finite left out, and ``step``, the number of
        iterations done by then. What is written after the last iteration is of that step.
    """
    iterations: dict[int, dict[str, float]] = {}
    for text in Path(path).read_text().splitlines():
        if (line := _parsed(text)) is None:  # of a kill, and a trainer that does not drop it
            continue
        iterations[line["iteration"]] = iterations.get(line["iteration"], {}) | line
    last = max((iteration for iteration, line in iterations.items() if "total_loss" in line), default=0)
    steps: dict[int, dict[str, float]] = {}
    for iteration, line in sorted(iterations.items()):
        step = min(iteration, last) + 1
        finite = {key: value for key, value in line.items() if key != "iteration" and math.isfinite(value)}
        steps[step] = steps.get(step, {"step": step}) | finite
    return list(steps.values())


def drop_iterations(path: Path, start: int) -> None:
    """Cut off what ``metrics.json`` has of an iteration from ``start`` on, which a training will write again.

    The file is cut where it is: Detectron2's writer has it open by then. What a kill has left of a line goes too.
    """
    kept = 0
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for text in file:
            line = _parsed(text) if text.endswith(b"\n") else None
            if line is None or line["iteration"] >= start:
                os.truncate(path, kept)
                break
            kept += len(text)


def put_speed(trainer: Any) -> None:
    """Log the images of both domains and all processes a second, beside Detectron2's seconds an iteration."""
    if "time" in trainer.storage.histories():  # which it does not take of the first iterations
        seconds = trainer.storage.history("time").latest()
        trainer.storage.put_scalar("images_per_second", trainer.data_loader.images_per_batch / seconds)


def flat(results: Mapping[str, Any]) -> dict[str, float]:
    """Return results as ``metrics.json`` names them: the data set first only where there are several."""
    return dict(flatten_results_dict(results))


def _parsed(text: str | bytes) -> dict[str, Any] | None:
    """A line of metrics; None of what is none, or not a whole one."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("iteration"), int) else None
