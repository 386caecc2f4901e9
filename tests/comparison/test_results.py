"""Statistics and tables of a comparison, on runs whose numbers are known."""

import dataclasses
import json
import math
import statistics
from pathlib import Path

import pytest

from gh_downstream.comparison.results import gradient_table, metric_table, paired_difference, read_comparison, read_run
from gh_downstream.comparison.runs import Comparison, Run
from tests.comparison.tiny import PRESET, group, row

BASE = (70.0, 75.0, 80.0)


def test_the_difference_is_paired():
    """The spread of the seeds alone, of 5, would hide one whose own is 0.2."""
    difference = paired_difference(row("gh", (71.0, 76.1, 80.9)), row("sum", BASE))
    assert difference.values == pytest.approx((1.0, 1.1, 0.9))
    assert difference.excludes_zero
    assert difference.half < statistics.stdev(BASE)


def test_only_seeds_that_both_have_are_compared():
    difference = paired_difference(row("gh", {1: 76.0, 2: 83.0, 7: 0.0}), row("sum", BASE))
    assert (len(difference.values), difference.mean) == (2, 2)
    assert paired_difference(row("gh", {7: 0.0}), row("sum", BASE)) is None


def test_one_seed_has_a_difference_and_no_interval():
    table = metric_table(group(row("sum", (70.0,)), row("gh", (72.0,))), {})
    assert table.rows[1][2:6] == [72.0, 72.0, 2.0, "–"]
    assert table.rows[1][7] == "–"
    assert not paired_difference(row("gh", (72.0,)), row("sum", (70.0,))).excludes_zero


def run_of(method, weighting, seed):
    return Run(PRESET, method, weighting, "shared", seed, Path(), Path(), ())


def test_the_table_has_the_metric_and_names_what_failed():
    failed = {run_of("cdan", "pcgrad", 1): "it diverged (log: x)", run_of("mcd", "gh", 0): "something else"}
    table = metric_table(group(row("sum", BASE), row("gh", (71.0, 77.0, 83.0))), failed)
    base, gh = table.rows
    assert math.isnan(base[4])
    assert gh[:2] == ["gh", 3]
    assert gh[2].mean == pytest.approx(77)
    assert gh[4:6] == [2.0, "[-0.48, 4.48]"]
    assert gh[6] == pytest.approx(3.26, abs=0.01)
    assert gh[7] == "cannot tell below 3.3"
    assert table.notes[0].startswith("seeds that would show a difference of 1 in 80 %")
    assert table.notes[0].endswith("gh 10")
    assert table.notes[1:] == ["failed: digits, cdan, pcgrad, shared, seed 1: it diverged (log: x)"]


def test_an_interval_without_zero_has_a_star():
    rows = [
        row("sum", BASE),
        row("gh", (71.0, 76.1, 80.9)),
        row("mgda", (65.0, 70.1, 74.9)),
        row("gh++", (70.1, 74, 82)),
    ]
    intervals = [cells[5] for cells in metric_table(group(*rows), {}).rows]
    assert intervals[:3] == ["–", "[0.75, 1.25] *", "[-5.25, -4.75] *"]
    assert not intervals[3].endswith("*")


def test_without_the_plain_sum_nothing_is_compared():
    assert [cells[5] for cells in metric_table(group(row("gh", BASE), row("gh++", BASE)), {}).rows] == ["–", "–"]


def test_source_only_is_beside_the_comparisons():
    table = metric_table(group(row("source-only", (60.0, 65.0, 70.0), scope=""), row("sum", BASE)), {})
    assert table.rows[0][4] == -10


def test_the_table_of_the_gradients_is_over_all_seeds():
    source = row("source-only", BASE, scope="")
    silent = dataclasses.replace(
        source, runs={0: dataclasses.replace(source.first, lines=[{"step": 9, PRESET.metric: 1.0}])}
    )
    table = gradient_table(group(silent, row("sum", BASE), row("gh", BASE, gain=1.5)))
    base, gh = table.rows
    # Angles of 110, 100, 90, ..., 30 degrees; norms of 4 and 1.
    assert base == ["sum", pytest.approx(100 * 2 / 9), 100.0, -0.5, 70.0, 4.0, 1.0, 10.0]
    assert gh[2] == 0
    assert gh[6] == 1.5


def test_what_a_run_starts_from_is_in_its_curve_and_never_its_best(tmp_path):
    (run,) = Comparison([PRESET], ["sum"], tmp_path, tmp_path, seeds=1, source_only=False).runs()
    run.folder.mkdir(parents=True)
    (run.folder / "final.json").write_text('{"target/accuracy": 1.0}')
    lines = [{"step": step, "target/accuracy": accuracy} for step, accuracy in ((0, 9.0), (10, 3.0), (20, 1.0))]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    finished = read_run(run)
    assert (finished.best, finished.series("target/accuracy")) == (3.0, ([0, 10, 20], [9.0, 3.0, 1.0]))


def test_rows_are_called_as_the_preset_calls_them(tmp_path):
    preset = dataclasses.replace(PRESET, adapted="adapted")
    comparison = Comparison([preset], ["sum", "gh++"], tmp_path, tmp_path, scopes=["shared", "all"], seeds=1)
    for run in comparison.runs():
        run.folder.mkdir(parents=True)
        (run.folder / "final.json").write_text('{"target/accuracy": 1.0}')
        (run.folder / "metrics.jsonl").write_text("")
    (found,) = read_comparison(comparison)
    assert [row.name for row in found.rows] == ["adapted", "adapted + gh++", "adapted + gh++ (all)"]
