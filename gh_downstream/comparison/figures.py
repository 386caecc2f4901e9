"""Figures of a comparison. A weighting has the same colour in all of them; lines that lie under others are thicker."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from gh_downstream.comparison.atlas import ANGLES, RATIOS, Charted, families
from gh_downstream.comparison.controlled import TwoQuadratics
from gh_downstream.comparison.results import BASE, Group, Row, Series
from gh_downstream.comparison.weightings import lambda_of
from gh_downstream.reporting.plots import (
    INK,
    WEIGHTING_COLORS,
    Axes,
    Figure,
    finish,
    legend_below,
    panel_grid,
    running_median,
    weighting_colors,
)

if TYPE_CHECKING:
    from gh_downstream.comparison.conflicts import Conflict

_SMOOTHED = 10
_TASK_COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")
THIRDS = ("first third of the steps", "second third", "last third")


def metric_figure(group: Group) -> Figure:
    """Draw the metric over the steps: the mean over the seeds, and a band of their standard deviation."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for row, style in zip(group.rows, _styles([row.weighting for row in group.rows]), strict=True):
        series = [run.series(group.preset.metric) for run in row.runs.values()]
        line = "--" if row.scope == "all" else "-"
        _plot_over_seeds(axes, series, marker="o", markersize=4, label=row.name, linestyle=line, **style)
    finish(axes, "", "step", group.preset.metric)
    legend_below(figure)
    return figure


def angle_figure(group: Group) -> Figure:
    """Draw in what share of the steps the gradients stood at more than each angle, in each third of the steps.

    The angles are those of all seeds; where a line crosses that of 90 degrees is the share of the steps in conflict.
    """
    rows = [row for row in group.rows if row.lines]
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    panels = figure.subplots(1, len(THIRDS), sharex=True, sharey=True)
    angles = [row.measured("gh/angle") for row in rows]
    styles = _styles([row.weighting for row in rows])
    for third, (axes, title) in enumerate(zip(panels, THIRDS, strict=True)):
        axes.axvline(90, color=INK, linewidth=1, linestyle=":")
        for row, style in zip(rows, styles, strict=True):
            found = np.sort(_angles_in_third(row, third))
            if len(found):
                shares = [*np.linspace(100, 0, len(found) + 1), 0]
                line = "--" if row.scope == "all" else "-"
                axes.step([0, *found, 180], shares, where="post", label=row.name, linestyle=line, **style)
        finish(axes, title, "angle in degrees", "" if third else "steps at more than it, in percent")
    low, high = min(map(min, angles)), max(map(max, angles))
    panels[0].set(xlim=(max(min(low, 90) - 3, 0), min(max(high, 90) + 3, 180)), ylim=(-2, 102))
    legend_below(figure, columns=4)
    return figure


def weight_figure(group: Group) -> Figure:
    """Draw the weights of the tasks over the steps, a panel for each weighting but the plain sum.

    Thin lines are the weights of the first seed; thick ones the running median, its mean over the seeds with a band of
    their standard deviation.
    """
    rows = [row for row in group.rows if row.lines and row.weighting != BASE]
    figure, panels = panel_grid(len(rows), 1.9, (0.6, 0.9))
    largest = max(row.largest_weight for row in rows)
    for axes, row in zip(panels, rows, strict=True):
        keys = [key for key in row.lines[0] if key.startswith("gh/weight/")]
        axes.axhline(1, color=INK, linewidth=1, linestyle=":")
        for key, color in zip(keys, _TASK_COLORS, strict=False):
            steps, values = row.first.series(key)
            axes.plot(steps, values, color=color, linewidth=0.5, alpha=0.35)
            medians = [(at, running_median(found)) for at, found in (run.series(key) for run in row.runs.values())]
            _plot_over_seeds(axes, medians, color=color, linewidth=1.8, label=key.removeprefix("gh/weight/"))
        finish(axes, row.name, "", "")
        if largest > 10:
            axes.set_yscale("symlog", linthresh=1)
            axes.set_yticks([-1, 0, 1, *(10**k for k in range(1, math.ceil(math.log10(largest)) + 1))])
            axes.set_ylim(min(-0.2, axes.get_ylim()[0]), 1.3 * largest)
    for axes in panels[-4:]:
        axes.set_xlabel("step", color=INK)
    for axes in panels[::4]:
        axes.set_ylabel("weight", color=INK)
    legend_below(figure)
    return figure


def lambda_figure(groups: Sequence[Group]) -> Figure:
    """Draw the metric of exact GH++ over its lambda, a panel for each task and baseline.

    The line is the mean over the seeds with a band of their standard deviation; dashed the plain sum.
    """
    figure = Figure(figsize=(9.6, 0.6 + 3.0 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
    for axes, group in zip(panels, groups, strict=True):
        lambdas, rows = zip(*sorted(lambda_points(group).items()), strict=True)
        means, stds = np.array([_over_seeds(row.values) for row in rows]).T
        color = WEIGHTING_COLORS["gh++"]
        axes.plot(lambdas, means, color=color, linewidth=2, marker="o", markersize=5, label="GH++ at lambda")
        axes.fill_between(lambdas, means - stds, means + stds, color=color, alpha=0.15, linewidth=0)
        if group.base is not None:
            color, (mean, std) = WEIGHTING_COLORS[BASE], _over_seeds(group.base.values)
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
    width, height = (problem.minima.amax(0) - problem.minima.amin(0).clamp(max=0)).tolist()
    figure, panels = panel_grid(len(paths), 2.4 * (height + 0.5) / (width + 0.4) + 0.35, (0, 0))
    colors = weighting_colors(paths)
    for axes, (name, path) in zip(panels, paths.items(), strict=True):
        axes.plot(*problem.minima.T.tolist(), color="#bbbbbb", linewidth=5, solid_capstyle="round", zorder=0)
        if name != BASE and BASE in paths:
            axes.plot(*paths[BASE].T.tolist(), color="#888888", linewidth=1)
        axes.plot(*path.T.tolist(), color=colors[name], linewidth=2)
        axes.plot(*path[-1].tolist(), marker="o", color=colors[name], markersize=6)
        axes.plot(*problem.minima.T.tolist(), marker="*", color=INK, markersize=9, linestyle="")
        axes.plot(*problem.start.tolist(), marker="s", color=INK, markersize=5, linestyle="")
        axes.set_title(name, fontsize=10, color=INK)
        axes.set(aspect="equal", xlim=(-width / 2 - 0.2, width / 2 + 0.2), ylim=(-0.15, height + 0.25))
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
    figure, panels = panel_grid(len(maps), 2.3, (1.0, 0.5))
    for axes, (name, conflict) in zip(panels, maps.items(), strict=True):
        values = conflict.numpy()
        mesh = axes.pcolormesh(angles, norm_ratios, values.T, cmap="RdBu", vmin=-1, vmax=1, shading="nearest")
        if values.min() < -1e-6 < values.max():
            axes.contour(angles, norm_ratios, values.T, levels=[-1e-6], colors=INK, linewidths=1.2, linestyles="solid")
        axes.set_yscale("log")
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_xticks([90, 135, 180])
    figure.supxlabel("angle between the gradients in degrees", fontsize=10, color=INK)
    figure.supylabel("norm of the first over the second", fontsize=10, color=INK)
    figure.colorbar(mesh, ax=figure.axes, label="smaller cosine of update and gradient", fraction=0.04)
    return figure


def _styles(names: Sequence[str]) -> list[dict[str, Any]]:
    """Colour and width of each line: later ones are thinner, so that those under them show."""
    colors = weighting_colors(names)
    widths = np.linspace(3.6, 1.2, len(names)) if len(names) > 1 else [2.0]
    return [{"color": colors[name], "linewidth": float(width)} for name, width in zip(names, widths, strict=True)]


def _over_seeds(values: Sequence[Any]) -> tuple[Any, Any]:
    """Mean and sample standard deviation over the first dimension; 0 for the spread of one seed."""
    return np.mean(values, 0), np.std(values, 0, ddof=min(len(values) - 1, 1))


def _plot_over_seeds(axes: Axes, series: Sequence[Series], **style: Any) -> None:
    """Draw the mean of curves at the steps that all have, with a band of their standard deviation."""
    curves = [dict(zip(*one, strict=True)) for one in series]
    steps = sorted(set.intersection(*map(set, curves)))
    mean, std = _over_seeds([[curve[step] for step in steps] for curve in curves])
    axes.plot(steps, mean, **style)
    axes.fill_between(steps, mean - std, mean + std, color=style["color"], alpha=0.15, linewidth=0)


def _angles_in_third(row: Row, third: int) -> np.ndarray:
    angles = []
    for run in row.runs.values():
        steps, values = run.series("gh/angle")
        thirds = (3 * (np.array(steps) - 1) / run.lines[-1]["step"]).astype(int).clip(max=2)
        angles.append(np.array(values)[thirds == third])
    return np.concatenate(angles)


def atlas_figure(charts: Mapping[str, Charted]) -> Figure:
    """Draw where the updates of the weightings point, and how long they are, over the angle between two gradients.

    A panel for each ratio of norms; weightings of one direction share a line above, and a colour below. Updates in the
    grey oppose neither gradient.
    """
    shown = [RATIOS.index(ratio) for ratio in (0.25, 1.0, 4.0)]
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    above, below = figure.subplots(2, len(shown), sharex=True, sharey="row")
    groups = families(charts)
    styles = _styles([family[0] for family in groups])
    for axes, k in zip(above, shown, strict=True):
        axes.fill_between(ANGLES, [angle - 90 for angle in ANGLES], 90, color="#eeeeee", linewidth=0)
        for family, style in zip(groups, styles, strict=True):
            axes.plot(ANGLES, charts[family[0]].direction[:, k].tolist(), label=" = ".join(family), **style)
        finish(axes, f"norms as {RATIOS[k]:g} to 1", "", "degrees towards the first" if k == shown[0] else "")
        axes.set(ylim=(-45, 180), yticks=[-45, 0, 45, 90, 135, 180])
    for axes, k in zip(below, shown, strict=True):
        for family, style in zip(groups, styles, strict=True):
            for name in family:
                axes.plot(ANGLES, charts[name].gain[:, k].tolist(), **style)
        finish(axes, "", "angle between the gradients", "gain" if k == shown[0] else "")
        axes.set(yscale="log", xticks=[0, 45, 90, 135, 180])
        axes.yaxis.set_major_formatter("{x:g}")
    legend_below(figure, columns=3)
    return figure


_SHOWN_COLORS = {"conflict": "#d55e00", "agreement": "#0072b2", "not shown": "#888888"}


def cosine_figure(conflicts: Mapping[tuple[str, str], Conflict], said: Mapping[tuple[str, str], str]) -> Figure:
    """Draw the cosines of the batches and their mean, by pair of tasks and layer, coloured by what is shown of it."""
    pairs = {pair: [layer for other, layer in conflicts if other == pair] for pair, _ in conflicts}
    figure = Figure(figsize=(9.6, 0.8 * len(pairs) + 0.3 * len(conflicts)), layout="constrained")
    heights = [2 + len(layers) for layers in pairs.values()]
    panels = figure.subplots(len(pairs), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (pair, layers) in zip(panels, pairs.items(), strict=True):
        axes.axvline(0, color=INK, linewidth=1, linestyle=":")
        for place, layer in enumerate(layers):
            one, color = conflicts[pair, layer], _SHOWN_COLORS[said[pair, layer]]
            axes.scatter(one.values, [place] * len(one.values), s=16, color=color, alpha=0.3, linewidths=0)
            low, high = one.interval
            axes.errorbar(
                one.mean,
                place,
                xerr=[[one.mean - low], [high - one.mean]],
                color=color,
                marker="D",
                markersize=6,
                capsize=4,
                linewidth=2,
            )
        finish(axes, pair, "", "")
        axes.set_yticks(range(len(layers)), layers)
        axes.set(xlim=(-1.02, 1.02), ylim=(len(layers) - 0.5, -0.5))
    panels[-1].set_xlabel("cosine of the gradients", color=INK)
    return figure


def course_figure(lines: Sequence[Mapping[str, float]], tasks: Sequence[str]) -> Figure:
    """Draw the largest angle between two gradients, and the norm of each, over the logged steps."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    panels[0].axhline(90, color=INK, linewidth=1, linestyle=":")
    colors = weighting_colors(tasks)
    norms = [(panels[1], f"gh/norm/{task}", task, colors[task]) for task in tasks]
    for axes, key, label, color in [(panels[0], "gh/angle", "angle", INK), *norms]:
        steps, values = zip(*[(line["step"], line[key]) for line in lines if key in line], strict=True)
        axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.4)
        axes.plot(steps, running_median(values), color=color, linewidth=2, label=label)
    panels[1].set_yscale("log")
    finish(panels[0], "", "step", "largest angle in degrees")
    finish(panels[1], "", "step", "norm of the gradient")
    legend_below(figure)
    return figure
