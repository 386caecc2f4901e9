"""The results of a run in its output folder."""

import json
import math

import pytest

from gh_downstream.classification.evaluation import RESULTS as CLASSIFICATION
from gh_downstream.classification.evaluation import ClassificationResult
from gh_downstream.detection.evaluation import RESULTS, APResult
from gh_downstream.retrieval.evaluation import METRICS, RetrievalResult
from gh_downstream.retrieval.evaluation import RESULTS as RETRIEVAL


def result(name, ap50=40.0, per_class=None):
    return APResult(name, 0.02, 3, 7, 20.0, ap50, 18.0, per_class or {"car": ap50, "train": math.nan})


def ap50s(output):
    results, configuration = RESULTS.read(output)
    return configuration, {name: found.ap50 for name, found in results.items()}


def test_what_is_written_is_read(tmp_path):
    RESULTS.write(tmp_path / "run", "abc", {"foggy": result("foggy")})
    results, configuration = RESULTS.read(tmp_path / "run")
    assert (list(results), configuration) == (["foggy"], "abc")
    assert results["foggy"].as_dict() == result("foggy").as_dict()
    assert math.isnan(results["foggy"].ap50_per_class["train"])
    json.loads((tmp_path / "run" / "results.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON


def test_results_of_one_configuration_come_together(tmp_path):
    RESULTS.write(tmp_path, "abc", {"foggy": result("foggy", 1.0)})
    RESULTS.write(tmp_path, "abc", {"clear": result("clear", 2.0)})
    RESULTS.write(tmp_path, "abc", {"foggy": result("foggy", 3.0)})
    assert ap50s(tmp_path) == ("abc", {"foggy": 3.0, "clear": 2.0})
    text = (tmp_path / "results.md").read_text()
    assert text.count("configuration: abc") == 2
    assert "data set: foggy (fog density 0.02)" in text
    assert "data set: clear" in text
    assert len(RESULTS.tables(tmp_path)) == 2


def test_results_of_another_configuration_are_not_mixed(tmp_path):
    RESULTS.write(tmp_path, "abc", {"foggy": result("foggy", 1.0), "clear": result("clear", 2.0)})
    RESULTS.write(tmp_path, "other", {"clear": result("clear", 4.0)})
    assert ap50s(tmp_path) == ("other", {"clear": 4.0})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"configuration": "a", "results": {"foggy": {"ap": 1}}}'])
def test_a_file_that_holds_no_results_is_named_and_kept(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"results.json holds no results"):
        RESULTS.read(tmp_path)
    with pytest.raises(ValueError, match=r"results.json holds no results"):
        RESULTS.write(tmp_path, "abc", {"foggy": result("foggy")})
    assert path.read_text() == text


def test_missing_results_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results.json"):
        RESULTS.read(tmp_path)


@pytest.mark.parametrize(
    ("store", "first", "second"),
    [
        (CLASSIFICATION, *(ClassificationResult(name, 5, 60.0, {"a": 50.0, "b": 70.0}) for name in "xy")),
        (RETRIEVAL, *(RetrievalResult(name, 5, 6, dict.fromkeys(METRICS, 10.0)) for name in "xy")),
    ],
    ids=["classification", "retrieval"],
)
def test_every_workload_keeps_the_results_of_other_data_sets(tmp_path, store, first, second):
    store.write(tmp_path, "abc", {"x": first})
    store.write(tmp_path, "abc", {"y": second})
    assert store.read(tmp_path) == ({"x": first, "y": second}, "abc")
    (table,) = store.tables(tmp_path)
    assert [row[0] for row in table.rows] == ["x", "y"]
    assert table.to_markdown() == (tmp_path / "results.md").read_text()
