"""What is chosen on half of the seeds and judged on the others, on runs whose numbers are known."""

import json

import pytest

from gh_downstream.comparison.report import write_comparison
from gh_downstream.comparison.runs import Comparison
from gh_downstream.comparison.tuning import tuned_table
from tests.comparison.tiny import PRESET, group, row

BASE = (70.0, 72.0, 74.0, 76.0)


def test_what_was_best_on_the_first_seeds_is_judged_on_the_others_alone():
    """On all seeds a weight of 3 would be the best, by what it does on those that judge."""
    rows = [
        row("sum", BASE),
        row("fixed:weight=0.3", (72.0, 73.0, 73.0, 75.2)),
        row("fixed:weight=3", (71.0, 72.0, 99.0, 99.0)),
        row("gh", (80.0, 80.0, 75.0, 77.2)),
        row("gh++", (79.0, 79.0, 99.0, 99.0)),
    ]
    weight, weighting, both = tuned_table(group(*rows)).rows
    assert weight[:3] == ["fixed weight", 3, "fixed:weight=0.3"]
    assert weight[3].mean == pytest.approx(74.1)
    assert weight[4] == pytest.approx(-0.9)
    assert weighting[:3] == ["weighting", 2, "gh"]
    assert weighting[4] == pytest.approx(1.1)
    assert both[:3] == ["weighting – fixed weight", "–", "–"]
    assert both[4:6] == [pytest.approx(2.0), "[2.00, 2.00] *"]
    assert both[7] == "better"


def test_where_no_weight_is_better_the_plain_sum_is_chosen():
    rows = [row("sum", BASE), row("fixed:weight=3", (1.0,) * 4), row("gh", BASE)]
    weight, _, both = tuned_table(group(*rows)).rows
    assert weight[2:3] + weight[5:] == ["sum", "–", pytest.approx(float("nan"), nan_ok=True), "–"]
    assert both[7] == "equal"


def test_only_seeds_that_all_have_are_used_and_other_rows_stay_out():
    late = row("gh", {1: 80.0, 2: 80.0, 3: 80.0, 4: 80.0, 5: 99.0})
    full = {k: 70.0 + k for k in range(8)}
    source = row("source-only", {1: 99.0}, scope="")
    (weight, *_) = tuned_table(group(source, row("sum", full), row("fixed:weight=3", full), late)).rows
    assert weight[3].mean == pytest.approx((73 + 74 + 75) / 3)


@pytest.mark.parametrize(
    "rows",
    [
        [row("sum", BASE), row("gh", BASE)],
        [row("sum", BASE), row("fixed:weight=3", BASE)],
        [row("fixed:weight=3", BASE), row("fixed:weight=5", BASE), row("gh", BASE)],
        [row("sum", BASE[:3]), row("fixed:weight=3", BASE), row("gh", BASE)],
        [],
    ],
)
def test_where_there_is_nothing_to_choose_from_or_too_few_seeds_there_is_no_table(rows):
    assert tuned_table(group(*rows)) is None


@pytest.mark.slow
def test_the_report_has_it_beside_a_bisector_of_its_own_length(tmp_path):
    """And a weighting that looks at losses, which is not among those of the controlled problems."""
    pytest.importorskip("torchjd")
    words = ["sum", "gh", "imtlg:length=sum", "famo", "fixed:weight=3"]
    comparison = Comparison([PRESET], words, tmp_path, tmp_path, methods=["dann"], seeds=4, source_only=False)
    for run in comparison.runs():
        run.folder.mkdir(parents=True)
        (run.folder / "final.json").write_text(json.dumps({PRESET.metric: 70.0 + 2 * words.index(run.weighting)}))
        (run.folder / "metrics.jsonl").write_text("")
    metric, tuned = write_comparison(comparison, {})
    assert [cells[0] for cells in metric.rows] == words
    assert [cells[2] for cells in tuned.rows] == ["fixed:weight=3", "famo", "–"]
    assert "tuned with one budget" in (tmp_path / "report.md").read_text()
    problems = json.loads((tmp_path / "tables.json").read_text())[2]
    assert {"imtlg:length=sum", "fixed:weight=3"} < {cells[0] for cells in problems["rows"]}
