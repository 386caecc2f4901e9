"""Figures of metrics, angles and weights over a training run.

Every function returns a matplotlib figure of its own and touches no global state of matplotlib. A method has the same
colour in all of them; the colours of the methods of this package are those of Okabe and Ito, which colour-blind readers
can tell apart.
"""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

try:
    import numpy as np
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    message = "plots need matplotlib: pip install 'gh_downstream[training]'"
    raise ImportError(message) from error

Series = tuple[Sequence[float], Sequence[float]]
"""Steps and the values at these steps."""

METHOD_COLORS = {
    "sourceonly": "#7f7f7f",
    "sum": "#0072b2",
    "gh": "#d55e00",
    "gh++": "#009e73",
    "gh++official": "#cc79a7",
    "gh++adaptive": "#00ced1",
    "gh++guard": "#4d9221",
    "oracle": "#000000",
    "alignedmtl": "#44aa99",
    "cagrad": "#0000cd",
    "dualproj": "#006d2c",
    "fairgrad": "#b2182b",
    "gradvac": "#661100",
    "imtlg": "#999933",
    "mean": "#8fbc8f",
    "mgda": "#f0027f",
    "pcgrad": "#7b68ee",
    "upgrad": "#ff7f50",
}
"""Colours of the methods, those of TorchJD too, by their names in lower case without spaces and punctuation."""

_OTHER_COLORS = ("#e69f00", "#56b4e9", "#8c510a", "#6a3d9a", "#882255")
INK = "#222222"
"""Colour of text and axes."""


def method_colors(names: Iterable[str]) -> dict[str, str]:
    """Return one colour for each name.

    Names of methods ("GH++", "adapted + GH++", "aligned + GH++", "source-only", …) have fixed colours; "adapted" and
    "aligned", the plain sum of the losses, have that of "sum". Other names take further colours in their order.
    """
    colors: dict[str, str] = {}
    others = 0
    for name in names:
        key = re.sub(r"[^a-z0-9+]", "", name.lower()).removeprefix("adapted+").removeprefix("aligned+")
        key = "sum" if key in ("adapted", "aligned") else key
        if key not in METHOD_COLORS:
            others += 1
        colors[name] = METHOD_COLORS.get(key) or _OTHER_COLORS[(others - 1) % len(_OTHER_COLORS)]
    return colors


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    """Render a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def metric_curves(runs: Mapping[str, Series], *, ylabel: str, title: str = "") -> Figure:
    """Draw one metric over the training steps of several runs.

    Args:
        runs: Steps and values by the name of the run; values that are not finite leave a gap.
        ylabel: Name and unit of the metric.
        title: Title of the figure.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    colors = method_colors(runs)
    for name, (steps, values) in runs.items():
        axes.plot(steps, values, color=colors[name], label=name, linewidth=1.8, marker="o", markersize=4)
    finish(axes, title, "step", ylabel)
    legend_below(figure)
    return figure


def angle_histogram(runs: Mapping[str, Sequence[float]], *, title: str = "") -> Figure:
    """Draw how often the two gradients of several runs stood at which angle.

    Args:
        runs: Angles in degrees, from 0 to 180, by the name of the run; angles that are not finite (a vanishing
            gradient has none) are left out.
        title: Title of the figure.

    Returns:
        The figure: percent of the steps in bins of 3 degrees, the right angle marked, and in the legend the share of
        the steps in conflict.
    """
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(90, 180, color="#d55e00", alpha=0.06, linewidth=0)
    axes.axvline(90, color=INK, linewidth=1, linestyle="--")
    colors = method_colors(runs)
    for name, angles in runs.items():
        finite = np.array([angle for angle in angles if math.isfinite(angle)])
        conflict = f"{100 * (finite > 90).mean():.0f} % over 90°" if len(finite) else "no steps"
        axes.hist(
            finite,
            bins=np.linspace(0, 180, 61).tolist(),
            weights=np.full(len(finite), 100 / max(len(finite), 1)),
            histtype="step",
            color=colors[name],
            linewidth=1.6,
            label=f"{name}: {conflict}",
        )
    axes.set_xlim(0, 180)
    axes.set_xticks(range(0, 181, 30))
    finish(axes, title, "angle between the gradients of task and alignment in degrees", "steps in percent")
    legend_below(figure, columns=2)
    return figure


def weights_over_steps(runs: Mapping[str, Mapping[str, Series]], *, title: str = "") -> Figure:
    """Draw the weights of the tasks over the training steps of several runs, one panel for each task.

    Args:
        runs: Steps and weights by the name of the run and of the task.
        title: Title of the figure.

    Returns:
        The figure. Thin lines are the weights, thick ones their running median. A panel whose largest weight is over
        10 has a logarithmic scale.
    """
    tasks = list(dict.fromkeys(task for weights in runs.values() for task in weights))
    figure = Figure(figsize=(7.2, 1.0 + 2.3 * max(len(tasks), 1)), layout="constrained")
    panels = figure.subplots(max(len(tasks), 1), 1, sharex=True, squeeze=False)[:, 0]
    colors = method_colors(runs)
    for axes, task in zip(panels, tasks, strict=False):
        axes.axhline(1, color=INK, linewidth=1, linestyle="--")
        drawn: list[float] = []
        for name, weights in runs.items():
            if task in weights:
                steps, values = weights[task]
                axes.plot(steps, values, color=colors[name], linewidth=0.6, alpha=0.35)
                axes.plot(steps, running_median(values), color=colors[name], linewidth=1.8, label=name)
                drawn.extend(value for value in values if math.isfinite(value))
        if drawn and max(map(abs, drawn)) > 10:
            if min(drawn) > 0:
                axes.set_yscale("log")
            else:
                axes.set_yscale("symlog", linthresh=1)
        finish(axes, "", "", f"weight of {task}")
    panels[0].set_title(title, fontsize=11, color=INK)
    panels[-1].set_xlabel("step", color=INK)
    legend_below(figure)
    return figure


def running_median(values: Sequence[float]) -> list[float]:
    """Median over a window of a twentieth of the values around each, without those that are not finite."""
    reach = len(values) // 40
    medians = []
    for center in range(len(values)):
        window = [value for value in values[max(center - reach, 0) : center + reach + 1] if math.isfinite(value)]
        medians.append(statistics.median(window) if window else math.nan)
    return medians


def finish(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Give axes their labels and the look that all figures have."""
    axes.set_title(title, fontsize=11, color=INK)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Figure, columns: int = 3) -> None:
    """Put one legend for all panels under the figure, where it hides no data."""
    entries: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(str(label), handle)
    if entries:
        figure.legend(
            entries.values(),
            entries.keys(),
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=9,
        )
