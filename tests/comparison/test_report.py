"""The report of a comparison of a few steps."""

import json
import re

import pytest

from gh_downstream.comparison.report import write_comparison
from gh_downstream.comparison.results import read_comparison
from gh_downstream.comparison.runs import Comparison, train_all
from tests.comparison.tiny import tiny_retrieval

pytestmark = pytest.mark.slow

WEIGHTINGS = ["sum", "gh", "gh++:0", "gh++", "gh++:1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    comparison = Comparison([tiny_retrieval(folder)], WEIGHTINGS, folder / "out", folder, seeds=2)
    assert train_all(comparison, 2) == {}
    return comparison


def test_the_numbers_are_those_of_the_runs(finished):
    (group,) = read_comparison(finished)
    assert [(row.name, sorted(row.runs)) for row in group.rows] == [(word, [0, 1]) for word in WEIGHTINGS]
    base, gh, *_ = group.rows
    assert base.mean("gh/gain") == pytest.approx(1)
    assert base.largest_weight == pytest.approx(1)
    assert gh.largest_weight > 1
    assert gh.mean("gh/opposed") == 0
    gains = [line["gh/gain"] for run in gh.runs.values() for line in run.lines if "gh/gain" in line]
    assert len(gains) == 8
    assert gh.mean("gh/gain") == pytest.approx(sum(gains) / 8)


def test_the_report_has_tables_and_figures(finished):
    tables = write_comparison(finished, {})
    page = (finished.output / "report.html").read_text()
    for heading in ("scenes-small", "Sensitivity to lambda", "Two convex losses in the plane"):
        assert f"<h2>{heading}</h2>" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "twice UPGrad" not in page  # of which there is GH alone here
    text = (finished.output / "report.md").read_text()
    pictures = re.findall(r"\((figures/[^)]+\.png)\)", text)
    # The metric, angles, weights, lambda, and four of the controlled problems.
    assert len(pictures) == len(set(pictures)) == page.count("<img") == 8
    assert all((finished.output / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    content = json.loads((finished.output / "tables.json").read_text())
    assert content[: len(tables)] == [table.as_dict() for table in tables]
    metric, gradients = tables
    assert [row[0] for row in metric.rows] == [row[0] for row in gradients.rows] == WEIGHTINGS


def test_what_is_not_finished_is_left_out(finished, tmp_path):
    empty = Comparison(finished.presets, ["sum"], tmp_path, tmp_path, seeds=1)
    (table,) = write_comparison(empty, {})
    assert not table.rows
    assert (tmp_path / "report.html").exists()
