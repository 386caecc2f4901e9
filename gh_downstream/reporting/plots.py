"""The look that all figures have; nothing here touches the global state of matplotlib.

A weighting has the same colour in all of them; the colours of the weightings of this package are those of Okabe and
Ito, which colour-blind readers can tell apart.
"""

import io
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence

try:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
except ImportError as error:
    raise ImportError("plots need matplotlib: pip install 'gh_downstream[training]'") from error

WEIGHTING_COLORS = {
    "source-only": "#7f7f7f",
    "sum": "#0072b2",
    "gh": "#d55e00",
    "gh++": "#009e73",
    "gh++:official": "#cc79a7",
    "gh++:adaptive": "#00ced1",
    "gh++:guard": "#4d9221",
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
"""Colours of the weightings by their words, of source-only and of the oracle."""

_OTHER_COLORS = ("#e69f00", "#56b4e9", "#8c510a", "#6a3d9a", "#882255")
INK = "#222222"
"""Colour of text and axes."""


def weighting_colors(words: Iterable[str]) -> dict[str, str]:
    """Return a colour for each word; those not in :data:`WEIGHTING_COLORS` take further ones in their order."""
    colors: dict[str, str] = {}
    others = itertools.cycle(_OTHER_COLORS)
    for word in words:
        colors[word] = WEIGHTING_COLORS.get(word) or colors.get(word) or next(others)
    return colors


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    """Render a figure as PNG."""
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis) if axis.get_scale() != "linear"]
    powers = {label for axis in axes for label in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        text.set_parse_math(text in powers)  # Names of data and classes are no formulas.
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def panel_grid(count: int, height: float, margin: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels with common axes, four in a line at most, and the panels.

    Args:
        count: Number of panels.
        height: Height of a line of panels in inches; a panel is 2.4 inches wide.
        margin: What the figure has beside the panels, in width and height.
    """
    columns = min(4, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(2.4 * columns + margin[0], height * lines + margin[1]), layout="constrained")
    panels = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    # The lowest of each column, where those under it are hidden too.
    for axes in panels[count - columns : count]:
        axes.tick_params(labelbottom=True)
    return figure, panels[:count]


def running_median(values: Sequence[float]) -> list[float]:
    """Median over a window of a twentieth of the values around each, without those that are not finite."""
    reach = len(values) // 40
    windows = (values[max(center - reach, 0) : center + reach + 1] for center in range(len(values)))
    return [statistics.median([*filter(math.isfinite, window)] or [math.nan]) for window in windows]


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
        labels, handles = entries.keys(), entries.values()
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
