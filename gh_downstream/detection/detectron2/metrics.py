"""What a training on Detectron2 logged."""

import json
import math
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


def flat(results: Mapping[str, Any]) -> dict[str, float]:
    """Return results as ``metrics.json`` names them: the data set first only where there are several."""
    return dict(flatten_results_dict(results))
