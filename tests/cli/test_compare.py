"""The command of comparisons."""

import json

import pytest
import typer

from gh_downstream.cli import compare as module
from gh_downstream.cli.compare import compare
from tests.comparison.tiny import tiny_retrieval


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_retrieval(tmp_path_factory.mktemp("compare")).config


@pytest.mark.slow
def test_what_failed_is_in_the_table_and_the_exit_code(config, tmp_path, capsys):
    blocked = tmp_path / "scenes-small" / "gh" / "shared" / "seed0"
    blocked.mkdir(parents=True)
    (blocked / "last.pt").write_bytes(b"damaged")
    with pytest.raises(typer.Exit) as stopped:
        compare(config=config, engine="retrieval", weightings="sum, gh,sum,", seeds=1, output=tmp_path, jobs=1)
    assert stopped.value.exit_code == 1
    out = capsys.readouterr().out
    assert "failed: scenes-small, gh, shared, seed 0: " in out
    assert "seed0/log.txt" in " ".join(out.split()).replace(" ", "")
    assert f"report: {tmp_path / 'report.html'}" in out
    metric = json.loads((tmp_path / "tables.json").read_text())[0]
    assert [row[0] for row in metric["rows"]] == ["sum"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "letters"}, ["no task 'letters'", "digits", "--config FILE"]),
        ({"metric": "target/accuracy"}, ["belong to --config"]),
        ({"weightings": "sum,ghpp"}, ["'ghpp'", "gh++:adaptive"]),
        ({"task": ","}, ["at least one task"]),
        ({"weightings": ""}, ["at least one weighting"]),
        ({"scope": ""}, ["at least one scope"]),
        ({"lambdas": "0:7:1"}, ["expected START:STOP:STEP"]),
        ({"overrides": ["training.seed=3"]}, ["training.seed=3", "--seeds"]),
        ({"steps": 0}, ["steps must be at least 1"]),
        ({"sweep": "10:1", "seeds": 4}, ["expected LOWEST:HIGHEST"]),
        ({"sweep": "0.1:10", "seeds": 3}, ["--seeds 4 or more", "--sweep"]),
        ({"sweep": "0.1:10", "seeds": 4, "weightings": "gh"}, ["name sum and others"]),
    ],
)
def test_a_mistake_gets_one_line_and_trains_nothing(arguments, words, tmp_path):
    with pytest.raises(ValueError, match=words[0]) as caught:
        compare(**arguments, output=tmp_path / "output")
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)
    assert not (tmp_path / "output").exists()


def test_steps_go_to_tasks_of_several_engines(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "train_and_report", lambda comparison, jobs: asked.append(comparison))
    module.compare(task="digits,detection-detectron2", steps=5, output=tmp_path)
    (comparison,) = asked
    assert (comparison.steps, comparison.overrides) == (5, [])


def test_a_sweep_adds_its_weights_to_those_that_are_compared(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "train_and_report", lambda comparison, jobs: asked.append(comparison))
    module.compare(weightings="sum,gh,gh++,fixed:weight=0.5", sweep="0.5:2", seeds=4, output=tmp_path)
    assert asked[0].weightings == ["sum", "gh", "gh++", "fixed:weight=0.5", "fixed:weight=2"]
