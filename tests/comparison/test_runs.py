"""The loop on the real trainer: its runs, what they begin with, resuming, and failures."""

import dataclasses
import logging
import shutil
from pathlib import Path

import pytest
import yaml

from gh_downstream.comparison.presets import find_preset
from gh_downstream.comparison.results import read_run
from gh_downstream.comparison.runs import Comparison, train_all
from gh_downstream.training import ConfigError
from tests.comparison.tiny import tiny_retrieval
from tests.kill import held

pytestmark = pytest.mark.slow

WEIGHTINGS = ["sum", "gh", "gh++:0.3"]


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    return tiny_retrieval(tmp_path_factory.mktemp("comparison"))


def comparison_of(preset, output, **changes):
    settings = {"presets": [preset], "weightings": WEIGHTINGS, "seeds": 2} | changes
    return Comparison(output=output, datasets=output / "data", **settings)


@pytest.fixture(scope="module")
def finished(preset, tmp_path_factory):
    comparison = comparison_of(preset, tmp_path_factory.mktemp("finished"))
    assert train_all(comparison, 2) == {}
    return comparison


def test_every_weighting_of_a_seed_begins_alike(finished):
    first = {}
    for run in finished.runs():
        start, line, *_ = read_run(run).lines
        assert (start["step"], line["step"]) == (0, 1)
        losses = {key: value for key, value in line.items() if key.startswith("loss") or key == "total"}
        assert len(losses) > 2
        first.setdefault(run.seed, []).append((run.weighting, losses))
    for of_seed in first.values():
        assert [weighting for weighting, _ in of_seed] == WEIGHTINGS
        assert all(losses == of_seed[0][1] for _, losses in of_seed)
    assert first[0][0][1] != first[1][0][1]


def test_the_weightings_then_differ(finished):
    runs = {(run.weighting, run.seed): read_run(run) for run in finished.runs()}
    for seed in range(2):
        last = {runs[weighting, seed].lines[-2]["total"] for weighting in WEIGHTINGS}
        assert len(last) == len(WEIGHTINGS)


def test_a_run_has_its_curve_its_gradients_and_its_last_metric(finished):
    for run in finished.runs():
        read = read_run(run)
        steps, values = read.series(run.preset.metric)
        assert steps == [0, 2, 4]
        assert values[-1] == read.metric
        assert [line["step"] for line in read.gradients] == [1, 2, 3, 4]


def test_a_second_call_keeps_what_is_finished(finished):
    def written():
        return {path: path.stat().st_mtime_ns for path in finished.output.rglob("[!.]*") if path.is_file()}

    before = written()
    assert before
    assert train_all(finished, 1) == {}
    assert before == written()


def test_a_run_that_was_trained_but_not_read_is_read(finished, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(finished.output, output)
    (run, *_) = dataclasses.replace(finished, output=output).runs()
    (run.folder / "final.json").unlink()
    assert read_run(run) is None
    weights = (run.folder / "last.pt").read_bytes()
    run.check()  # the folder has moved, and is that of the same configuration
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert run.preset.metric in run.train()
    assert (run.folder / "last.pt").read_bytes() == weights
    assert config["training"]["steps"] == 4


def test_a_run_of_another_configuration_is_refused_before_anything_is_trained(finished):
    changed = dataclasses.replace(finished, overrides=["optimizer.lr=0.5"], seeds=3)
    with pytest.raises(ConfigError, match=r"seed0 belongs to another configuration: optimizer\.lr was 0\.001 and is 0"):
        train_all(changed, 1)
    assert not list(finished.output.rglob("seed2"))


def test_a_run_that_fails_is_reported_and_not_fatal(preset, tmp_path):
    comparison = comparison_of(preset, tmp_path, weightings=["sum", "gh"], seeds=1)
    blocked, good = comparison.runs()[1], comparison.runs()[0]
    blocked.folder.mkdir(parents=True)
    (blocked.folder / "last.pt").write_bytes(b"damaged")
    failed = train_all(comparison, 1)
    assert list(failed) == [blocked]
    assert str(blocked.folder / "log.txt") in failed[blocked]
    assert read_run(blocked) is None
    assert read_run(good) is not None


def test_an_interrupted_run_resumes(preset, tmp_path):
    short = comparison_of(preset, tmp_path, weightings=["gh"], seeds=1, overrides=["training.steps=2"])
    (run,) = short.runs()
    run.train()
    # As a killed run would have left it: two of four steps done.
    (run.folder / "final.json").unlink()
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())
    saved["training"]["steps"] = 4
    (run.folder / "config.yaml").write_text(yaml.safe_dump(saved))
    (whole,) = dataclasses.replace(short, overrides=[]).runs()
    whole.check()
    whole.train()
    assert [line["step"] for line in read_run(whole).gradients] == [1, 2, 3, 4]


def test_the_runs_of_a_preset(tmp_path):
    comparison = Comparison(
        [find_preset("digits")], ["sum", "gh"], tmp_path, tmp_path, ["cdan", "mcd"], ["shared", "all"], seeds=2
    )
    runs = comparison.runs()
    assert len({run.folder for run in runs}) == len({run.name for run in runs}) == len(runs) == 2 * (1 + 2 * (1 + 2))
    assert runs[0].weighting == "source-only"
    assert [str(run.folder.relative_to(tmp_path)) for run in runs[1:4]] == [
        "digits/cdan/sum/shared/seed0",
        "digits/cdan/gh/shared/seed0",
        "digits/cdan/gh/all/seed0",
    ]
    assert all(run.seed == 0 for run in runs[:7])
    assert "harmonization.weighting=none" in runs[0].overrides
    assert "harmonization.scope=all" in runs[3].overrides


def test_the_steps_are_those_of_each_engine_s_key_and_not_of_the_burn_ins(tmp_path):
    digits = dataclasses.replace(find_preset("mnist-usps"), methods=("mcd",))  # which has steps of its own
    runs = Comparison([digits, find_preset("detection-detectron2")], ["sum"], tmp_path, tmp_path, steps=7).runs()
    assert {run.preset.engine_name for run in runs} == {"classification", "detectron2"}
    for run in runs:
        values = dict(override.split("=", 1) for override in run.overrides)
        steps = {key: values[key] for key in ("training.steps", "SOLVER.MAX_ITER") if key in values}
        assert steps == {run.preset.engine.keys["steps"]: "7"}
        assert run.burn_in is None or not any("=7" in override for override in run.burn_in.overrides)


def test_a_preset_with_a_burn_in_goes_on_from_that_of_the_seed(tmp_path):
    comparison = Comparison(
        [find_preset("detection")], ["sum"], tmp_path, tmp_path, seeds=2, overrides=["training.steps=9"]
    )
    burn_ins = list(dict.fromkeys(run.burn_in for run in comparison.runs()))
    assert [run.folder.relative_to(tmp_path) for run in burn_ins] == [
        Path(f"detection/burn-in/seed{seed}") for seed in range(2)
    ]
    engine = find_preset("detection").engine
    assert [engine.load(run.config, run.overrides).training.steps for run in burn_ins] == [1000, 1000]
    for run in comparison.runs():
        config = engine.load(run.config, run.overrides)
        assert config.training.init_from == str(tmp_path / f"detection/burn-in/seed{run.seed}/last.pt")
        assert config.training.steps == 9
        assert (config.target is None) == (run.weighting == "source-only")


def test_what_would_go_on_from_a_broken_burn_in_is_not_trained(tmp_path, caplog):
    detection = find_preset("detection")
    detection = dataclasses.replace(detection, data=None)
    missing = tmp_path / "nowhere"
    paths = [f"{key}={missing}" for key in ("source.root", "validation.foggy.root")]
    broken = dataclasses.replace(
        detection, burn_in=dataclasses.replace(detection.burn_in, overrides=(*detection.burn_in.overrides, *paths))
    )
    comparison = Comparison([broken], ["sum"], tmp_path / "out", tmp_path, seeds=1)
    with caplog.at_level(logging.INFO):
        (burn_in,) = train_all(comparison, 1)
    assert burn_in.weighting == "burn-in"
    assert "Traceback" in (burn_in.folder / "log.txt").read_text()
    assert [path.name for path in (tmp_path / "out" / "detection").iterdir()] == ["burn-in"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weightings": ["sum", "ghpp"]}, ["'ghpp'", "gh++:adaptive", "pcgrad"]),
        ({"presets": []}, ["at least one task"]),
        ({"weightings": []}, ["at least one weighting"]),
        ({"scopes": []}, ["at least one scope"]),
        ({"scopes": ["some"]}, ["scope is one of shared, all"]),
        ({"seeds": 0}, ["seeds must be at least 1"]),
        ({"overrides": ["training.seed=3"]}, ["training.seed=3", "--seeds"]),
        ({"overrides": ["harmonization.weighting=gh"]}, ["--weightings"]),
    ],
)
def test_a_mistake_is_found_at_once(preset, changes, words, tmp_path):
    with pytest.raises(ValueError, match=words[0]) as caught:
        comparison_of(preset, tmp_path, **changes)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"overrides": ["optimizer.rate=1"]}, "unknown key optimizer.rate"),
        ({"methods": ["cdan"]}, "engine retrieval have no method"),
    ],
)
def test_a_mistake_in_a_configuration_trains_nothing(preset, changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        train_all(comparison_of(preset, tmp_path / "out", **changes), 1)
    assert not (tmp_path / "out").exists()


def test_a_finished_run_without_the_metric_is_one_error(preset, tmp_path):
    run = comparison_of(preset, tmp_path).runs()[0]
    run.folder.mkdir(parents=True)
    (run.folder / "final.json").write_text('{"loss": 1.0, "target/other": 2.0}')
    with pytest.raises(ValueError, match=f"{run.folder}: no metric '.*'; there are loss, target/other"):
        read_run(run)


def test_a_metric_that_there_is_not_is_refused_before_anything_is_trained(preset, tmp_path):
    with pytest.raises(ConfigError, match=r"best_metric is 'target/R@0'"):
        train_all(comparison_of(dataclasses.replace(preset, metric="target/R@0"), tmp_path / "out"), 1)
    assert not (tmp_path / "out").exists()


def test_of_two_comparisons_in_one_folder_the_second_is_refused(preset, tmp_path):
    comparison = comparison_of(preset, tmp_path / "out", weightings=["sum"], seeds=1)
    with held(tmp_path / "out"), pytest.raises(BlockingIOError, match="out is in use by another training"):
        train_all(comparison, 1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
