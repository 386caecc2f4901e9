from __future__ import annotations

import io
import math
import subprocess
import sys

import matplotlib.colors
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from gh_downstream.reporting.plots import WEIGHTING_COLORS, legend_below, running_median, to_png, weighting_colors


def test_a_word_has_its_colour_and_others_have_further_ones() -> None:
    colors = weighting_colors(["gh++", "gh++:0.3", "sum", "mean teacher"])
    assert (colors["gh++"], colors["sum"]) == (WEIGHTING_COLORS["gh++"], WEIGHTING_COLORS["sum"])
    others = {colors["gh++:0.3"], colors["mean teacher"]}
    assert len(others) == 2
    assert not others & set(WEIGHTING_COLORS.values())


def test_colours_differ_in_hue_or_lightness() -> None:
    colors = weighting_colors([*WEIGHTING_COLORS, "a", "b", "c", "d", "e"])
    rgb = np.array([matplotlib.colors.to_rgb(color) for color in colors.values()])
    distance = np.linalg.norm(rgb[:, None] - rgb, axis=-1) + 9 * np.eye(len(rgb))
    assert distance.min() > 0.2


def test_png_is_an_image_of_the_figure() -> None:
    figure = Figure(figsize=(3, 2))
    figure.add_subplot().plot([0, 100], [1.0, 2.0])
    with Image.open(io.BytesIO(to_png(figure, dpi=50))) as image:
        assert image.format == "PNG"
        assert image.size == (150, 100)


def test_a_legend_of_five_long_names_stays_in_the_figure_and_off_the_panels() -> None:
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    panels = figure.subplots(1, 2)
    for name in ["source-only", "adapted", "adapted + gh", "adapted + gh++:official", "oracle"]:
        for axes in panels:
            axes.plot([0, 1], [0, 1], label=name)
    legend_below(figure)
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 5
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_the_running_median_leaves_out_what_is_not_finite() -> None:
    # A window of five steps around the middle of a monotonous series has the middle as its median.
    assert running_median([float(step**2) for step in range(100)])[50] == 50**2
    assert running_median([1.0, math.nan])[0] == 1.0
    assert math.isnan(running_median([math.nan])[0])


def test_importing_the_plots_leaves_pyplot_alone() -> None:
    code = "import sys, gh_downstream.reporting.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_are_no_formulas() -> None:
    figure = Figure()
    figure.subplots().set_title("$x_{$")
    assert Image.open(io.BytesIO(to_png(figure, dpi=50))).size == (320, 240)


def test_powers_on_a_logarithmic_axis_are_formulas_and_names_are_not():
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([1, 1000], [1, 2], label="a$b$")
    axes.set_xscale("log")
    axes.set_yticks([1, 2], ["$x$", "y"])
    to_png(figure)
    assert all(label.get_parse_math() for label in axes.get_xticklabels() if label.get_text())
    assert any("$" in label.get_text() for label in axes.get_xticklabels())
    assert not any(label.get_parse_math() for label in axes.get_yticklabels())
