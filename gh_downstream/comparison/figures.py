"""Figures of a comparison. A weighting has the same colour in all of them; lines that lie under others are thicker."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from gh_downstream.comparison.controlled import TwoQuadratics
from gh_downstream.comparison.results import Group, Row
from gh_downstream.comparison.weightings import lambda_of
from gh_downstream.reporting.plots import (
    INK,
    METHOD_COLORS,
    Axes,
    Figure,
    finish,
    legend_below,
    method_colors,
    running_median,
)

_BINS = np.linspace(0, 180, 37)
_SMOOTHED = 10
_TASK_COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")
_THIRDS = ("first third of the steps", "second third", "last third")


def metric_figure(group: Group) -> Figure:
    """Draw the metric over the steps: the mean over the seeds, and a band of their standard deviation."""
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for row, style in _styled(group.rows):
        steps, mean, std = _over_seeds([run.series(group.preset.metric) for run in row.runs.values()])
        axes.plot(steps, mean, marker="o", markersize=4, label=row.name, **style)
        axes.fill_between(steps, mean - std, mean + std, color=style["color"], alpha=0.12, linewidth=0)
    finish(axes, "", "step", group.preset.metric)
    legend_below(figure)
    return figure


def angle_figure(group: Group) -> Figure:
    """Draw how often the gradients stood at which angle, for each weighting in each third of the steps.

    The angles are those of all seeds; a row of a panel is the histogram of a weighting, and its number the share of the
    steps over 90 degrees.
    """
    rows = [row for row in group.rows if row.lines]
    figure = Figure(figsize=(9.6, 1.4 + 0.34 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(_THIRDS), sharey=True, squeeze=False)[0]
    angles = [[_angles_in_third(row, third) for row in rows] for third in range(len(_THIRDS))]
    shares = [[_histogram(of_row) for of_row in of_third] for of_third in angles]
    largest = max(float(share.max()) for of_third in shares for share in of_third)
    mesh = None
    for axes, title, of_third, of_rows in zip(panels, _THIRDS, shares, angles, strict=True):
        image = np.array(of_third)
        mesh = axes.pcolormesh(_BINS, np.arange(len(rows) + 1), image, cmap="Greys", vmin=0, vmax=largest)
        axes.axvline(90, color="#d55e00", linewidth=1.2)
        for k, found in enumerate(of_rows):
            if len(found):
                share = f"{100 * (found > 90).mean():.0f} %"
                axes.text(177, k + 0.5, share, ha="right", va="center", fontsize=8, color="#b34700")
        axes.set_xlim(0, 180)
        axes.set_xticks([45, 90, 135])
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xlabel("angle in degrees", color=INK)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    panels[0].set_yticks(np.arange(len(rows)) + 0.5, [row.name for row in rows])
    panels[0].invert_yaxis()
    if mesh is not None:
        figure.colorbar(mesh, ax=panels, label="steps in percent", fraction=0.03)
    return figure


def weight_figure(group: Group) -> Figure:
    """Draw the weights of the tasks over the steps of the first seed, a panel for each weighting but the plain sum.

    Thin lines are the weights, thick ones their running median.
    """
    rows = [row for row in group.rows if row.lines and row.weighting != "sum"]
    columns = min(4, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(2.4 * columns + 0.6, 1.9 * lines + 0.9), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    largest = max(row.largest_weight for row in rows)
    for axes, row in zip(panels.flat, rows, strict=False):
        keys = [key for key in row.lines[0] if key.startswith("gh/weight/")]
        axes.axhline(1, color=INK, linewidth=1, linestyle=":")
        for key, color in zip(keys, _TASK_COLORS, strict=False):
            steps, values = row.first.series(key)
            axes.plot(steps, values, color=color, linewidth=0.5, alpha=0.35)
            axes.plot(steps, running_median(values), color=color, linewidth=1.8, label=key.removeprefix("gh/weight/"))
        finish(axes, row.name, "", "")
        if largest > 10:
            axes.set_yscale("symlog", linthresh=1)
            axes.set_yticks([-1, 0, 1, *(10**k for k in range(1, math.ceil(math.log10(largest)) + 1))])
            axes.set_ylim(min(-0.2, axes.get_ylim()[0]), 1.3 * largest)
    for axes in _hide_unused(panels, len(rows), columns):
        axes.set_xlabel("step", color=INK)
    for axes in panels[:, 0]:
        axes.set_ylabel("weight", color=INK)
    legend_below(figure)
    return figure


def lambda_figure(groups: Sequence[Group]) -> Figure:
    """Draw the metric of exact GH++ over its lambda, a panel for each task and baseline.

    The line is the mean over the seeds with a band of their standard deviation; dashed the plain sum.
    """
    figure = Figure(figsize=(7.6, 0.6 + 3.0 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
    for axes, group in zip(panels, groups, strict=True):
        points = sorted(lambda_points(group).items())
        lambdas = [lam for lam, _ in points]
        means = np.array([statistics.fmean(row.values) for _, row in points])
        stds = np.array([_std(row.values) for _, row in points])
        color = METHOD_COLORS["gh++"]
        axes.plot(lambdas, means, color=color, linewidth=2, marker="o", markersize=5, label="GH++ at lambda")
        axes.fill_between(lambdas, means - stds, means + stds, color=color, alpha=0.15, linewidth=0)
        if group.base is not None:
            color, mean, std = METHOD_COLORS["sum"], statistics.fmean(group.base.values), _std(group.base.values)
            axes.axhline(mean, color=color, linewidth=2, linestyle="--", label="plain sum")
            axes.axhspan(mean - std, mean + std, color=color, alpha=0.1, linewidth=0)
        finish(axes, group.name, "", group.preset.metric)
    panels[-1].set_xlabel("lambda: share of the turn that the first task, the alignment, takes", color=INK)
    legend_below(figure)
    return figure


def lambda_points(group: Group) -> dict[float, Row]:
    """Return the rows of exact GH++ by their lambda."""
    return {lam: row for row in group.rows if (lam := lambda_of(row.weighting)) is not None}


def path_figure(problem: TwoQuadratics, paths: Mapping[str, Tensor]) -> Figure:
    """Draw the paths of gradient descent, a panel for each weighting.

    In each the minima (stars), the Pareto front between them, the start (a square), the end (a dot), and in grey the
    path of the plain sum.
    """
    columns = min(4, len(paths))
    lines = math.ceil(len(paths) / columns)
    width, height = (problem.minima.amax(0) - problem.minima.amin(0).clamp(max=0)).tolist()
    size = 2.4 * (height + 0.5) / (width + 0.4)
    figure = Figure(figsize=(2.4 * columns, (size + 0.35) * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    colors = method_colors(paths)
    for axes, (name, path) in zip(panels.flat, paths.items(), strict=False):
        axes.plot(*problem.minima.T.tolist(), color="#bbbbbb", linewidth=5, solid_capstyle="round", zorder=0)
        if name != "sum" and "sum" in paths:
            axes.plot(*paths["sum"].T.tolist(), color="#888888", linewidth=1)
        axes.plot(*path.T.tolist(), color=colors[name], linewidth=2)
        axes.plot(*path[-1].tolist(), marker="o", color=colors[name], markersize=6)
        axes.plot(*problem.minima.T.tolist(), marker="*", color=INK, markersize=9, linestyle="")
        axes.plot(*problem.start.tolist(), marker="s", color=INK, markersize=5, linestyle="")
        axes.set_title(name, fontsize=10, color=INK)
    for axes in panels.flat:
        axes.set_aspect("equal")
        axes.set_xlim(-width / 2 - 0.2, width / 2 + 0.2)
        axes.set_ylim(-0.15, height + 0.25)
        axes.set_axis_off()
    return figure


def distance_figure(problem: TwoQuadratics, paths: Mapping[str, Tensor]) -> Figure:
    """Draw the distance to the Pareto front, as its mean over 10 steps, and both losses over the steps."""
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    for (name, path), style in zip(paths.items(), _styles(list(paths)), strict=True):
        # A mean over steps, as some updates step to and fro across the front.
        distances = problem.distance_to_front(path).unfold(0, _SMOOTHED, 1).mean(-1)
        panels[0].plot(distances.clamp(min=1e-6).tolist(), label=name, **style)
        for axes, losses in zip(panels[1:], problem.losses(path).T, strict=True):
            axes.plot(losses.tolist(), **style)
    panels[0].set_yscale("log")
    for axes, title in zip(panels, ("distance to the front", "loss 1", "loss 2"), strict=True):
        finish(axes, title, "step", "")
    legend_below(figure, columns=4)
    return figure


def conflict_figure(maps: Mapping[str, Tensor], angles: Sequence[float], norm_ratios: Sequence[float]) -> Figure:
    """Draw the maps of :func:`~gh_downstream.comparison.controlled.remaining_conflict`, a panel for each weighting.

    Red where a task is opposed, and the line between.
    """
    columns = min(4, len(maps))
    lines = math.ceil(len(maps) / columns)
    figure = Figure(figsize=(2.4 * columns + 1.0, 2.3 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    mesh = None
    for axes, (name, conflict) in zip(panels.flat, maps.items(), strict=False):
        values = conflict.numpy()
        mesh = axes.pcolormesh(angles, norm_ratios, values.T, cmap="RdBu", vmin=-1, vmax=1, shading="nearest")
        if values.min() < -1e-6 < values.max():
            axes.contour(angles, norm_ratios, values.T, levels=[-1e-6], colors=INK, linewidths=1.2, linestyles="solid")
        axes.set_yscale("log")
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_xticks([90, 135, 180])
    _hide_unused(panels, len(maps), columns)
    figure.supxlabel("angle between the gradients in degrees", fontsize=10, color=INK)
    figure.supylabel("norm of the first over the second", fontsize=10, color=INK)
    if mesh is not None:
        figure.colorbar(mesh, ax=panels, label="smaller cosine of update and gradient", fraction=0.04)
    return figure


def _hide_unused(panels: np.ndarray, used: int, columns: int) -> list[Axes]:
    """Hide the last panels; return the lowest one of each column, which gets numbers at its axis."""
    for axes in list(panels.flat)[used:]:
        axes.set_visible(False)
    lowest = list(panels.flat)[max(used - columns, 0) : used]
    for axes in lowest:
        axes.tick_params(labelbottom=True)
    return lowest


def _styled(rows: Sequence[Row]) -> list[tuple[Row, dict[str, Any]]]:
    styles = _styles([row.weighting for row in rows])
    for row, style in zip(rows, styles, strict=True):
        style["linestyle"] = "--" if row.scope == "all" else "-"
    return list(zip(rows, styles, strict=True))


def _styles(names: Sequence[str]) -> list[dict[str, Any]]:
    """Colour and width of each line: later ones are thinner, so that those under them show."""
    colors = method_colors(names)
    widths = np.linspace(3.6, 1.2, len(names)) if len(names) > 1 else [2.0]
    return [{"color": colors[name], "linewidth": float(width)} for name, width in zip(names, widths, strict=True)]


def _over_seeds(curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[Any, Any, Any]:
    """Steps that all curves have, mean and sample standard deviation there."""
    common = sorted(set.intersection(*(set(steps) for steps, _ in curves)))
    values = [[value for step, value in zip(steps, series, strict=True) if step in common] for steps, series in curves]
    stacked = np.array(values)
    std = stacked.std(0, ddof=1) if len(stacked) > 1 else np.zeros(len(common))
    return common, stacked.mean(0), std


def _angles_in_third(row: Row, third: int) -> np.ndarray:
    angles = []
    for run in row.runs.values():
        last = run.lines[-1]["step"]
        for line in run.gradients:
            if "gh/angle" in line and min(int(3 * (line["step"] - 1) / last), 2) == third:
                angles.append(line["gh/angle"])
    return np.array(angles)


def _histogram(angles: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(angles, bins=_BINS)
    return 100 * counts / max(len(angles), 1)


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
