"""Figures of a comparison, on runs whose numbers are known."""

import pytest

from gh_downstream.comparison import figures
from gh_downstream.comparison.results import Row
from gh_downstream.reporting.plots import WEIGHTING_COLORS
from tests.comparison.tiny import finished_run, group, row

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
    figure = figures.angle_figure(group(row("sum", BASE), row("gh", BASE, scope="all")))
    shares = []
    for axes in figure.axes:
        right_angle, *lines = axes.lines
        assert set(right_angle.get_xdata()) == {90}
        assert [line.get_color() for line in lines] == [WEIGHTING_COLORS["sum"], WEIGHTING_COLORS["gh"]]
        assert [line.get_linestyle() for line in lines] == ["-", "--"]
        angles, over = lines[0].get_data()
        shares.append([over[angles <= at][-1] for at in (0, 90, 180)])
    # Of 110, 100, 90 degrees two are over 90, of all seeds alike; then come 80 to 30.
    assert shares == [pytest.approx([100, 100 * 2 / 3, 0]), [100, 0, 0], [100, 0, 0]]


def test_the_band_of_the_weights_is_that_of_the_seeds():
    seeds = {0: finished_run("gh", 70.0), 1: finished_run("gh", 70.0)}
    for line in seeds[1].gradients:
        line["gh/weight/task"] = 3.0
    (axes,) = figures.weight_figure(group(Row("gh", "gh", "shared", seeds))).axes
    bands = [band.get_paths()[0].get_extents() for band in axes.collections]
    assert bands[0].height == 9 - 1  # the weight of the alignment rises, alike in both
    assert (bands[1].y0, bands[1].y1) == pytest.approx((1 - 8**0.5, 1 + 8**0.5))


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
