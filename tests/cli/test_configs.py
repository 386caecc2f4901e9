"""List, show and explain configurations."""

import dataclasses

import pytest
import yaml

from gh_downstream.classification.config import ClassificationConfig
from gh_downstream.cli.main import run
from gh_downstream.training import load_config
from gh_downstream.training.config import config_dict
from gh_downstream.training.configs import find_config, list_configs, training_of


def test_the_list_has_every_name_with_its_purpose_by_workload(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert run(["configs", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["classification:", "detection:", "retrieval:"]
    assert all(len(line) <= 100 for line in lines)
    # A purpose of several lines goes on under its beginning; what others are based on is not there to be trained.
    trained = [name for name in list_configs() if "/Base-" not in name]
    assert [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "] == trained
    (office,) = [line for line in lines if line.split()[0] == "classification/office31"]
    assert "Office-31" in office
    assert run(["configs"]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_a_configuration_is_shown_whole(capsys, tmp_path):
    base = next(name for name in list_configs() if name.startswith("classification/digits"))
    (tmp_path / "own.yaml").write_text(f"_base_: {base}\noutput: elsewhere\n")
    assert run(["configs", "show", str(tmp_path / "own.yaml")]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown == config_dict(load_config(ClassificationConfig, tmp_path / "own.yaml"))
    assert shown["output"] == "elsewhere"
    assert shown["harmonization"]["period"] == 1  # a default


def test_one_of_detectron2_is_shown_with_its_base(capsys):
    pytest.importorskip("detectron2")
    assert run(["configs", "show", "detection/mini/burn-in"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert "_BASE_" not in shown
    own = yaml.safe_load(find_config("detection/mini/burn-in").read_text())
    base = yaml.safe_load(find_config("detection/mini/source-only").read_text())
    assert shown["OUTPUT_DIR"] == own["OUTPUT_DIR"]
    assert shown.keys() == (own.keys() | base.keys()) - {"_BASE_"}


def test_a_key_is_explained_with_its_default_and_engines(capsys):
    assert run(["configs", "explain", "harmonization.period"]) == 0
    heading, *text = capsys.readouterr().out.splitlines()
    assert heading.startswith("harmonization.period: int = 1")
    assert all(engine in heading for engine in ("native", "retrieval", "classification"))
    assert "step" in " ".join(text)
    assert run(["configs", "explain", "GH.PERIOD"]) == 0
    heading, *same = capsys.readouterr().out.splitlines()
    assert heading.startswith("GH.PERIOD: int = 1")
    assert "detectron2" in heading
    assert same == text


def test_a_mistyped_key_is_answered_with_those_like_it(capsys):
    assert run(["configs", "explain", "optimizer.lrr"]) == 2
    assert "optimizer.lr" in capsys.readouterr().err.split("did you mean")[1]


def test_explain_needs_no_full_key(capsys):
    assert run(["configs", "explain", "batch_size"]) == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(ClassificationConfig):
        if field.name == "batch_size":
            assert f"batch_size: int = {field.default}  (classification)" in shown
    assert shown.count("batch_size: int") == 3  # each workload has its own


def test_a_training_prints_its_resolved_configuration_and_stops(capsys, tmp_path):
    words = ["--print-config", "optimizer.lr=0.5", f"output={tmp_path / 'run'}"]
    assert run(["train", "--config", "classification/digits", *words]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(shown))
    assert (shown["optimizer"]["lr"], shown["harmonization"]["period"]) == (0.5, 1)
    assert shown == config_dict(load_config(ClassificationConfig, tmp_path / "own.yaml"))
    assert not (tmp_path / "run").exists()


def test_one_for_detectron2_prints_the_library_s_defaults_too(capsys):
    pytest.importorskip("detectron2")
    assert run(["train", "--config", "detection/mini/da", "--print-config", "SOLVER.MAX_ITER=7"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["SOLVER"]["MAX_ITER"] == 7
    assert shown["DA"]["METHOD"] == "image_instance"
    assert shown["MODEL"]["RPN"]["NMS_THRESH"] == 0.7  # a default


def test_the_training_that_makes_an_output_is_found():
    assert training_of("outputs/mini/burn-in") == "make it with: gh-downstream train --config detection/mini/burn-in"
    assert training_of("elsewhere") == ""
