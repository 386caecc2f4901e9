import json
import math

import pytest

from gh_downstream.detection.evaluation import APResult
from gh_downstream.detection.results import read_results, result_tables, write_detections, write_results


def result(name, ap50=40.0, per_class=None):
    return APResult(name, 0.02, 3, 7, 20.0, ap50, 18.0, per_class or {"car": ap50, "train": math.nan})


def ap50s(output):
    results, configuration = read_results(output)
    return configuration, {name: found.ap50 for name, found in results.items()}


def test_what_is_written_is_read(tmp_path):
    write_results(tmp_path / "run", "abc", {"foggy": result("foggy")})
    results, configuration = read_results(tmp_path / "run")
    assert (list(results), configuration) == (["foggy"], "abc")
    assert results["foggy"].as_dict() == result("foggy").as_dict()
    assert math.isnan(results["foggy"].ap50_per_class["train"])
    json.loads((tmp_path / "run" / "results.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON


def test_results_of_one_configuration_come_together(tmp_path):
    write_results(tmp_path, "abc", {"foggy": result("foggy", 1.0)})
    write_results(tmp_path, "abc", {"clear": result("clear", 2.0)})
    write_results(tmp_path, "abc", {"foggy": result("foggy", 3.0)})
    assert ap50s(tmp_path) == ("abc", {"foggy": 3.0, "clear": 2.0})
    text = (tmp_path / "results.md").read_text()
    assert text.count("configuration: abc") == 2
    assert "data set: foggy (fog density 0.02)" in text
    assert "data set: clear" in text
    assert len(result_tables(tmp_path)) == 2


def test_results_of_another_configuration_are_not_mixed(tmp_path):
    write_results(tmp_path, "abc", {"foggy": result("foggy", 1.0), "clear": result("clear", 2.0)})
    write_results(tmp_path, "other", {"clear": result("clear", 4.0)})
    assert ap50s(tmp_path) == ("other", {"clear": 4.0})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"configuration": "a", "results": {"foggy": {"ap": 1}}}'])
def test_a_file_that_holds_no_results_is_named_and_kept(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"results.json holds no results"):
        read_results(tmp_path)
    with pytest.raises(ValueError, match=r"results.json holds no results"):
        write_results(tmp_path, "abc", {"foggy": result("foggy")})
    assert path.read_text() == text


def test_missing_results_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results.json"):
        read_results(tmp_path)


def test_detections_are_written_in_cocos_format(tmp_path):
    detections = [{"image_id": "a", "category_id": 0, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.1 + 0.2}]
    write_detections(tmp_path / "detections", "foggy", detections)
    assert json.loads((tmp_path / "detections" / "foggy.json").read_text()) == detections
