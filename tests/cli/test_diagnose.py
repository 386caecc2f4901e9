"""The diagnosis of real runs, from the command line."""

import hashlib
import json
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState

from gh_downstream.cli.main import run

SHORT = ["batch_size=8", "training.steps=15", "training.log_every=1", "training.evaluate_every=null"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)


def train(folder, *overrides):
    config = ["--config", "classification/digits", f"output={folder}", *SHORT, *overrides]
    assert run(["train", *config]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained") / "run", "method=dann")


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_is_diagnosed_and_left_as_it_is(folder, tmp_path, capsys):
    before = content(folder)
    report = tmp_path / "report.html"
    assert run(["diagnose", str(folder), "--batches", "5", "--weightings", "gh,gh++:0.3", "--output", str(report)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Harmonization ")
    for part in ("first third of the steps", "last weights", "backbone.trunk.0", "gh++:0.3", f"report: {report}"):
        assert part in said
    assert content(folder) == before
    assert report.read_text().count("<img") == 2
    again = [line for line in said.splitlines() if "gh" in line]
    assert run(["diagnose", str(folder), "--batches", "5", "--weightings", "gh,gh++:0.3"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "gh" in line] == again
    assert (folder / "diagnosis.html").is_file()


def test_what_it_measures_is_what_the_training_measures(tmp_path):
    """From a state before the last step: the next batch there is the one that the training took."""
    from gh_downstream.comparison.engines import find_engine

    folder = train(
        tmp_path / "run", "method=dann", "training.steps=3", "training.checkpoint_every=2", "trade_offs=before"
    )
    (folder / "previous.pt").rename(folder / "last.pt")
    engine = find_engine("classification")
    probe = engine.probe(engine.load(folder / "config.yaml", [f"output={folder}"]), 1)
    logged = engine.read_lines(folder)[2]
    norms = probe.gramians[0].sum(0).diagonal().sqrt().tolist()
    assert norms == pytest.approx([logged["gh/norm/alignment"], logged["gh/norm/task"]], rel=1e-5)


def test_a_method_that_updates_several_times_on_a_batch_counts_it_once(tmp_path):
    from gh_downstream.comparison.engines import find_engine

    folder = train(tmp_path / "run", "method=mcd", "training.steps=4")
    engine = find_engine("classification")
    assert len(engine.probe(engine.load(folder / "config.yaml", [f"output={folder}"]), 3).gramians) == 3


def test_the_log_alone_is_enough(folder, capsys):
    for name in ("last.pt", "config.yaml"):
        (folder / name).unlink()
    assert run(["diagnose", str(folder), "--batches", "0"]) == 0
    assert "all logged steps, alignment – task" in capsys.readouterr().out


def test_the_log_of_a_trainer_with_the_detectron2_plugin_is_read(tmp_path, capsys):
    pytest.importorskip("detectron2")
    entry = {"total_loss": 1.0, "gh/cosine": -0.2, "gh/angle": 101.5, "gh/norm/alignment": 0.1, "gh/norm/task": 2.0}
    lines = (json.dumps(entry | {"iteration": k}) for k in range(20))
    (tmp_path / "metrics.json").write_text("\n".join(lines) + "\n")
    assert run(["diagnose", str(tmp_path), "--batches", "0"]) == 0
    assert "102 ± 0 degrees, norms 1 to 20, conflict in 100 %: on average real" in capsys.readouterr().out


def test_a_short_log_of_detectron2_is_told_by_its_keys(tmp_path, capsys):
    pytest.importorskip("detectron2")
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 5, "total_loss": 1.0}\n')
    assert run(["diagnose", str(tmp_path)]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "GH.WEIGHTING=sum" in error
    assert "GH.LOG_PERIOD lower" in error
    entry = {"total_loss": 1.0, "gh/cosine": -0.2, "gh/angle": 101.5, "gh/norm/alignment": 0.1, "gh/norm/task": 2.0}
    path.write_text("\n".join(json.dumps(entry | {"iteration": k}) for k in range(2)) + "\n")
    assert run(["diagnose", str(tmp_path), "--batches", "0"]) == 2
    assert "(GH.LOG_PERIOD)" in capsys.readouterr().err


def unharmonized(folder):
    """A run that has not measured its gradients."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [{key: value for key, value in line.items() if not key.startswith("gh/")} for line in lines]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def shortened(folder):
    """A run of two steps."""
    path = folder / "metrics.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:2]) + "\n")


def weights_alone(folder):
    """A checkpoint to start from, not to go on from."""
    state = torch.load(folder / "last.pt", weights_only=True)
    torch.save({key: state[key] for key in ("format", "model")}, folder / "last.pt")


def nothing(folder):
    """A run as it is."""


@pytest.mark.parametrize(
    ("prepare", "words", "named"),
    [
        (lambda folder: (folder / "metrics.jsonl").unlink(), [], "no folder of a training"),
        (lambda folder: folder.rename(folder.with_name("moved")), [], "no folder of a training"),
        (unharmonized, [], "harmonization.weighting=sum"),
        (lambda folder: (folder / "last.pt").unlink(), [], "last.pt"),
        (lambda folder: (folder / "last.pt").write_bytes(b"damaged"), [], "last.pt"),
        (weights_alone, [], "last.pt does not fit"),
        (nothing, ["bottleneck=32"], "last.pt does not fit"),
        (lambda folder: (folder / "config.yaml").unlink(), [], "--batches 0"),
        (lambda folder: (folder / "config.yaml").write_text("method: dann"), [], "config.yaml"),
        (nothing, ["--batches", "-1"], "--batches"),
        (nothing, ["--batches", "2"], "noise: 2"),
        (nothing, ["--batches", "0", "--weightings", "gh+"], "gh+"),
        (nothing, ["--batches", "0", "--weightings", ","], "--weightings"),
        (nothing, ["--batches", "0", "--weightings", "famo"], "losses"),
        (nothing, ["training.step=3"], "training.step"),
        (shortened, ["--batches", "0"], "too few"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(folder, capsys, prepare, words, named):
    prepare(folder)
    assert run(["diagnose", str(folder), *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert named in line
    assert not (folder / "diagnosis.html").exists()
