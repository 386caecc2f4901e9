"""Statistics, findings and figures of a comparison, on runs whose numbers are known."""

import math
import statistics
from pathlib import Path

import pytest

from gh_downstream.comparison import figures
from gh_downstream.comparison.findings import findings
from gh_downstream.comparison.grid import Cell, Failure
from gh_downstream.comparison.results import Group, Row, Run, group_table, paired_difference
from gh_downstream.comparison.tasks import find_task
from gh_downstream.reporting.plots import method_colors

TASK = find_task("digits")


def run(weighting, seed, value, gain=1.0, scope="shared", seconds=0.01):
    """A run of nine steps with one evaluation in the middle and one at its end."""
    lines = []
    for step in range(1, 10):
        line = {"step": step, "cosine": -0.5, "angle": 120.0 - 10 * step, "gain": gain, "conflict_rate": 0.25}
        line |= {"opposed": float(weighting == "sum"), "norm/alignment": 1.0, "norm/task": 4.0}
        lines.append(line | {"weight/alignment": 1.0 + step, "weight/task": -1.0})
        if step in (5, 9):
            lines.append({"step": step, TASK.metric: value if step == 9 else value / 2})
    return Run(Cell(TASK, "cdan", weighting, scope, seed, Path(), Path()), lines, value, seconds)


def row(weighting, values, scope="shared", **settings):
    seeds = values if isinstance(values, dict) else dict(enumerate(values))
    return Row(weighting, scope, {seed: run(weighting, seed, value, **settings) for seed, value in seeds.items()})


def group(*rows):
    return Group("digits", "cdan", TASK.metric, rows)


BASE = (70.0, 75.0, 80.0)


def test_the_difference_is_paired_and_its_interval_is_student_s():
    """By hand: differences 1, 2, 3 have mean 2, deviation 1, and t of two degrees of freedom is 4.303."""
    difference = paired_difference(row("gh", (71.0, 77.0, 83.0)), row("sum", BASE))
    assert difference.mean == pytest.approx(2)
    assert difference.half == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert not difference.excludes_zero
    steady = paired_difference(row("gh", (71.0, 76.1, 80.9)), row("sum", BASE))
    assert steady.excludes_zero  # where the spread of the seeds alone, of 5, would hide it
    assert steady.half < statistics.stdev(BASE)


def test_only_seeds_that_both_have_are_compared():
    difference = paired_difference(row("gh", {1: 76.0, 2: 83.0, 7: 0.0}), row("sum", BASE))
    assert (difference.pairs, difference.mean) == (2, 2)
    assert paired_difference(row("gh", {7: 0.0}), row("sum", BASE)) is None


def test_one_seed_has_a_difference_and_no_interval():
    compared = group(row("sum", (70.0,)), row("gh", (72.0,)))
    table = group_table(compared, [])
    assert table.rows[1][4:6] == [2.0, "–"]
    (text,) = findings([compared])
    assert "One seed has no spread: nothing can be said about the difference of gh" in text
    assert "better" not in text
    assert "worse" not in text


def test_the_table_has_the_numbers_of_the_lines():
    failure = Failure(run("pcgrad", 1, 0.0).cell, "it diverged (log: x)")
    elsewhere = Failure(Cell(TASK, "mcd", "gh", "shared", 0, Path(), Path()), "something else")
    table = group_table(group(row("sum", BASE), row("gh", (71.0, 77.0, 83.0), gain=1.5)), [failure, elsewhere])
    (_, gh) = table.rows
    assert gh[:3] == ["gh", "shared", 3]
    assert gh[3].mean == pytest.approx(77)
    assert gh[5] == "[-0.48, 4.48]"
    assert gh[6:] == pytest.approx([25.0, 0.0, 1.5, 10.0, 10.0])
    assert table.notes == ["failed: digits, cdan, pcgrad, shared, seed 1: it diverged (log: x)"]


def test_findings_tell_differences_beyond_the_interval_from_others():
    rows = [
        row("sum", BASE),
        row("gh", (71.0, 76.1, 80.9)),
        row("mgda", (65.0, 70.1, 74.9)),
        row("gh++", (70.1, 74, 82)),
    ]
    text, on_chance = findings([group(*rows)])
    assert "leaves out 0 for one weighting that is better than it: gh +1.00 [0.75, 1.25]" in text
    assert "leaves out 0 for one weighting that is worse than it: mgda -5.00 [-5.25, -4.75]" in text
    assert "holds 0 for one weighting, whose difference these seeds do not tell from none: gh++ +0.37" in text
    assert "All together 3 differences were looked at, of which 2 have" in on_chance
    assert "about 0.15 would be expected" in on_chance


def test_findings_do_not_call_anything_better_without_an_interval_that_says_so():
    text, on_chance = findings([group(row("sum", BASE), row("gh", (71.0, 77.0, 83.0)))])
    assert "holds 0 for one weighting, so that these seeds tell no difference to it from none: gh +2.00" in text
    assert "better" not in text
    assert "of which 0 have" in on_chance


def test_findings_say_what_the_gradients_did():
    (text, _) = findings([group(row("sum", BASE), row("gh", BASE, gain=1.5), row("gh++", BASE, gain=1.01))])
    assert "25.0 % of the steps were in conflict, with a mean cosine of -0.50" in text
    assert "4 times as long as the shortest" in text
    assert "gh 1.50 and gh++ 1.01" in text
    assert "That of gh differs from 1 by more than 0.05" in text
    assert "The update opposed a task in this share of the logged steps: sum 100.0 %." in text
    (text, _) = findings([group(row("sum", BASE), row("gh", BASE))], length="sum")
    assert "--normalize" not in text


def test_findings_point_out_updates_that_are_the_same():
    rows = [row("sum", BASE), row("gh", (71.0, 76.0, 80.0)), row("pcgrad", (71.0, 76.5, 80.0)), row("mgda", BASE)]
    (text, _) = findings([group(*rows)])
    assert "gh and pcgrad are the same update of two tasks up to rounding, as long as no max_weight binds." in text
    assert "up to 0.50 apart" in text
    (text, _) = findings([group(row("sum", BASE), row("gh", BASE), row("pcgrad", BASE, scope="all"))])
    assert "same update" not in text


def test_findings_without_the_plain_sum_compare_nothing():
    assert findings([group(row("gh", BASE))]) == [
        "digits, cdan. There is no finished run of sum, with which the others could be compared."
    ]


def test_source_only_is_beside_the_comparisons():
    (text,) = findings([group(row("source-only", (60.0, 65.0, 70.0), scope="–"), row("sum", BASE))])
    assert "Source-only is 10.00 below the plain sum" in text
    assert "No other weighting has a finished run" in text


def test_a_curve_of_the_metric_is_the_mean_over_the_seeds_with_its_spread():
    figure = figures.metric_figure(group(row("sum", BASE), row("gh", BASE, scope="all")))
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["sum"].get_ydata()) == pytest.approx([37.5, 75.0])
    assert lines["gh (all)"].get_linestyle() == "--"
    assert lines["gh (all)"].get_color() == method_colors(["gh"])["gh"]
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
