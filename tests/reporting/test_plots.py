from __future__ import annotations

import io
import math
import subprocess
import sys

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from gh_downstream.reporting.plots import (
    METHOD_COLORS,
    angle_histogram,
    method_colors,
    metric_curves,
    to_png,
    weights_over_steps,
)

RUNS = ["source-only", "adapted", "adapted + GH", "adapted + GH++", "oracle"]


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def line_of(axes: Axes, label: str) -> np.ndarray:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(line.get_ydata())


def assert_legend_is_clear_of_the_panels(figure: Figure) -> None:
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_a_method_has_one_colour_under_all_its_names() -> None:
    colors = method_colors(["adapted + GH++", "GH++", "gh++", "Sum", "adapted", "Source only", "mean teacher"])
    assert colors["adapted + GH++"] == colors["GH++"] == colors["gh++"] == METHOD_COLORS["gh++"]
    assert colors["adapted"] == colors["Sum"] == METHOD_COLORS["sum"]
    assert colors["Source only"] == METHOD_COLORS["sourceonly"]
    assert colors["mean teacher"] not in METHOD_COLORS.values()


def test_colours_differ_between_methods_in_hue_or_lightness() -> None:
    colors = method_colors([*METHOD_COLORS, "a", "b", "c", "d", "e"])
    rgb = np.array([matplotlib.colors.to_rgb(color) for color in colors.values()])
    distance = np.linalg.norm(rgb[:, None] - rgb, axis=-1) + 9 * np.eye(len(rgb))
    assert distance.min() > 0.2


def test_png_is_an_image_of_the_figure() -> None:
    figure = metric_curves({"adapted": ([0, 100], [1.0, 2.0])}, ylabel="AP50")
    with Image.open(io.BytesIO(to_png(figure, dpi=50))) as image:
        assert image.format == "PNG"
        assert image.size == tuple(round(50 * inches) for inches in figure.get_size_inches())


def test_metric_curves_hold_the_values() -> None:
    series = {name: ([0, 50, 100], [index, math.nan, 2 * index]) for index, name in enumerate(RUNS)}
    figure = metric_curves(series, ylabel="AP50 in percent", title="fog")
    (axes,) = figure.axes
    for name, (_, values) in series.items():
        np.testing.assert_array_equal(line_of(axes, name), values)
    assert (axes.get_ylabel(), axes.get_title()) == ("AP50 in percent", "fog")
    assert sorted(legend_texts(figure)) == sorted(RUNS)
    assert_legend_is_clear_of_the_panels(figure)


def test_angle_histogram_counts_conflicts_and_marks_the_right_angle() -> None:
    angles = {"adapted": [80.0, 85.0, 95.0, 180.0, math.nan], "adapted + GH": [0.0, 90.0], "oracle": []}
    figure = angle_histogram(angles)
    (axes,) = figure.axes
    assert axes.get_xlim() == (0, 180)
    assert 90 in axes.get_xticks()
    (marker,) = axes.lines
    assert set(np.asarray(marker.get_xdata())) == {90}
    assert legend_texts(figure) == [
        "adapted: 50 % over 90°",
        "adapted + GH: 0 % over 90°",
        "oracle: no steps",
    ]
    assert_legend_is_clear_of_the_panels(figure)


def test_angle_histogram_is_in_percent_of_the_steps() -> None:
    angles = np.random.default_rng(0).uniform(0, 180, 500)
    (axes,) = angle_histogram({"adapted": angles.tolist()}).axes
    (outline,) = [patch for patch in axes.patches if patch.get_label().startswith("adapted")]
    heights = outline.get_path().vertices[1:-1:2, 1]
    assert heights.sum() == pytest.approx(100)


def test_a_legend_of_five_long_names_stays_in_the_figure() -> None:
    names = [*RUNS[:4], "adapted + GH++ (official)"]
    assert_legend_is_clear_of_the_panels(angle_histogram({name: [80.0, 100.0] for name in names}))
    assert_legend_is_clear_of_the_panels(metric_curves({name: ([0], [1.0]) for name in names}, ylabel="AP"))


def test_weights_have_a_panel_for_each_task_and_a_scale_that_fits() -> None:
    steps = list(range(100))
    figure = weights_over_steps(
        {
            "adapted + GH": {
                "task": (steps, [1.0 + 0.001 * step for step in steps]),
                "alignment": (steps, [1.0 + step**2 for step in steps]),
                "third": (steps, [1.0 - step for step in steps]),
            },
            "adapted + GH++": {"alignment": (steps, [math.nan] * 100)},
            "source-only": {},
        }
    )
    task, alignment, third = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "weight of task",
        "weight of alignment",
        "weight of third",
    ]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "symlog"]
    # A window of five steps around the middle of a monotonous series has the middle as its median.
    assert line_of(alignment, "adapted + GH")[50] == 1 + 50**2
    assert legend_texts(figure) == ["adapted + GH", "adapted + GH++"]
    assert_legend_is_clear_of_the_panels(figure)
    assert len(task.lines) == len(third.lines) == 3


def test_runs_without_any_step_give_an_empty_figure() -> None:
    for figure in (
        metric_curves({}, ylabel="AP"),
        angle_histogram({}),
        weights_over_steps({}),
        weights_over_steps({"adapted": {"task": ([], [])}}),
    ):
        assert to_png(figure, dpi=30)


def test_importing_the_plots_leaves_pyplot_alone() -> None:
    code = (
        "import sys, gh_downstream.reporting.plots, gh_downstream.reporting.geometry; "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
