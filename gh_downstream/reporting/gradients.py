"""What harmonization did to the gradients of a training, from the lines of its metrics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from gh_downstream.reporting.html import Picture
from gh_downstream.reporting.plots import angle_histogram, weights_over_steps
from gh_downstream.reporting.tables import Cell, Spread, Table

Lines = Sequence[Mapping[str, float]]
"""A dictionary for each logged step whose gradients were measured: ``step``, ``cosine``, ``angle`` in degrees, ``gain``
(left out where it is not finite), ``conflict`` and ``opposed`` (0 or 1), ``weight/TASK`` and ``norm/TASK`` of the tasks
``alignment`` and ``task``."""

TASKS = ("alignment", "task")


def gradient_table(runs: Mapping[str, Sequence[Lines]]) -> Table:
    """Summarize the gradients of several models.

    Args:
        runs: The lines of each run (seed) of a model, by its name; models without any are left out.
    """
    rows: list[list[Cell]] = []
    for name, of_model in runs.items():
        lines = [line for run in of_model for line in run]
        if lines:
            gains = [line["gh/gain"] for line in lines if "gh/gain" in line]
            rows.append(
                [
                    name,
                    100 * statistics.fmean(line["gh/conflict"] for line in lines),
                    100 * statistics.fmean(line["gh/opposed"] for line in lines),
                    statistics.median(line["gh/angle"] for line in lines),
                    Spread.of(gains) if len(gains) > 1 else math.nan,
                    *(max(line[f"gh/weight/{task}"] for line in lines) for task in TASKS),
                    statistics.median(line["gh/norm/task"] / line["gh/norm/alignment"] for line in lines),
                ]
            )
    columns = ["model", "conflict %", "opposed %", "median angle", "gain", *(f"largest weight, {t}" for t in TASKS)]
    return Table(
        "Gradients of task and alignment",
        [*columns, "median norm ratio"],
        rows,
        [
            "conflict: steps in which the two gradients are at more than 90 degrees; opposed: steps whose update still "
            "points against one of them; gain: length of the update over that of the plain sum, mean ± standard "
            "deviation over the steps; norm ratio: task over alignment"
        ],
        digits=2,
    )


def gradient_pictures(runs: Mapping[str, Lines]) -> list[Picture]:
    """Draw the angles and the weights of one run of each model.

    Args:
        runs: The lines of a run, by the name of the model; models without any are left out.
    """
    measured = {name: lines for name, lines in runs.items() if lines}
    angles = {name: [line["gh/angle"] for line in lines] for name, lines in measured.items()}
    weights = {
        name: {t: ([line["step"] for line in lines], [line[f"gh/weight/{t}"] for line in lines]) for t in TASKS}
        for name, lines in measured.items()
    }
    return [
        Picture(angle_histogram(angles), "Angle between the gradients of task and alignment, over the logged steps."),
        Picture(weights_over_steps(weights), "Weights of the two losses. Without conflict both are 1."),
    ]
