"""Figures of a comparison, on runs whose numbers are known."""

import pytest

from gh_downstream.comparison import figures
from gh_downstream.reporting.plots import WEIGHTING_COLORS
from tests.comparison.tiny import group, row

BASE = (70.0, 75.0, 80.0)


def test_a_curve_of_the_metric_is_the_mean_over_the_seeds_with_its_spread():
    figure = figures.metric_figure(group(row("sum", BASE), row("gh", BASE, scope="all")))
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["sum"].get_ydata()) == pytest.approx([37.5, 75.0])
    assert lines["gh (all)"].get_linestyle() == "--"
    assert lines["gh (all)"].get_color() == WEIGHTING_COLORS["gh"]
    # Equal lines: the one on top is thinner.
    assert lines["gh (all)"].get_linewidth() < lines["sum"].get_linewidth()
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((35.0, 80.0))


def test_angles_are_shown_by_thirds_of_the_steps():
    figure = figures.angle_figure(group(row("sum", BASE)))
    shares = [[text.get_text() for text in axes.texts] for axes in figure.axes[:3]]
    assert shares == [["67 %"], ["0 %"], ["0 %"]]  # of 110, 100, 90 degrees two are over 90


def test_lambdas_are_a_curve_with_the_plain_sum_beside_it():
    swept = group(
        row("sum", BASE), row("gh++:1", (76, 77, 78)), row("gh++:0", (70, 71, 72)), row("gh++:adaptive", BASE)
    )
    assert list(figures.lambda_points(swept)) == [1.0, 0.0]
    (axes,) = figures.lambda_figure([swept]).axes
    curve, level = axes.lines
    assert [list(curve.get_xdata()), list(curve.get_ydata())] == [[0.0, 1.0], [71.0, 77.0]]
    assert set(level.get_ydata()) == {75.0}
    assert level.get_linestyle() == "--"


def test_every_weighting_but_the_plain_sum_has_a_panel_of_weights():
    figure = figures.weight_figure(group(row("sum", BASE), row("gh", BASE), row("pcgrad", BASE)))
    assert [axes.get_title() for axes in figure.axes] == ["gh", "pcgrad"]
    assert all(len(axes.lines) == 1 + 2 * 2 for axes in figure.axes)
