"""Training and evaluation from the command line; the tests of each engine have more of it."""

import json
import logging

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard

from gh_downstream.cli.main import run
from gh_downstream.comparison.engines import engine_of
from gh_downstream.training.configs import find_config

SHORT = ["batch_size=4", "training.steps=2", "training.evaluate_every=null"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)


def results(folder):
    return json.loads((folder / "results.json").read_text())["results"]


def test_a_packaged_configuration_trains_by_name_and_is_evaluated(tmp_path, capsys, caplog):
    with caplog.at_level(logging.INFO):
        assert run(["train", "--config", "classification/office31-like", *SHORT]) == 2
        capsys.readouterr()
        config = ["--config", "classification/digits", "method=dann", f"output={tmp_path / 'run'}", *SHORT]
        assert run(["train", *config, "harmonization.weighting=gh++"]) == 0
    assert "classification" in caplog.text
    assert "Accuracy" in capsys.readouterr().out
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (written["batch_size"], written["harmonization"]["weighting"]) == (4, "gh++")
    again = ["--config", str(tmp_path / "run" / "config.yaml"), "--checkpoint", str(tmp_path / "run" / "last.pt")]
    found = results(tmp_path / "run")
    assert run(["evaluate", *again, "validation.target.domain=source"]) == 0
    assert results(tmp_path / "run") == found != results(tmp_path / "run" / "evaluation")
    capsys.readouterr()
    assert run(["evaluate", *again, f"output={tmp_path / 'again'}"]) == 0
    assert f"written: {tmp_path / 'again' / 'evaluation' / 'results.json'}, " in capsys.readouterr().out
    assert results(tmp_path / "again" / "evaluation") == found
    (tmp_path / "run" / "results.json").unlink()
    assert run(["train", *config, "harmonization.weighting=gh++"]) == 0
    assert results(tmp_path / "run") == found


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["evaluate", "--config", "classification/office31"], "--checkpoint"),
        (["train", "--config", "classification/office31", "--check"], "amazon.txt does not exist"),
        (["train", "--config", "classification/office31", "--engine", "retrieval"], "office31.yaml"),
        (["train", "--config", "classification/office31", "training.step=3"], "training.step"),
        (["export", "--config", "classification/office31", "--checkpoint", "x.pt", "--output", "y"], "office31.yaml"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(words, named, capsys):
    assert run(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert named in line


@pytest.mark.parametrize("engine", ["detectron2", "native"])
def test_check_reads_every_image_of_detection_and_trains_nothing(tmp_path, monkeypatch, capsys, caplog, engine):
    pytest.importorskip("detectron2" if engine == "detectron2" else "torchvision")
    from gh_downstream.detection.data.mini_cityscapes import make_mini_cityscapes

    root = tmp_path / "mini_cityscapes"
    make_mini_cityscapes(root, train=4, val=2, height=64, width=128)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    config = {
        "detectron2": ["--config", "detection/mini/da", f"OUTPUT_DIR={tmp_path / 'run'}"],
        "native": [
            *("--config", "detection/native/mini", f"output={tmp_path / 'run'}"),
            *(f"{key}.root={root}" for key in ("source", "target", "validation.foggy")),
        ],
    }[engine]
    with caplog.at_level(logging.INFO):
        assert run(["train", "--check", *config]) == 0
    assert "all 6 images can be read" in caplog.text  # of two cities each, and of the validation
    faulty = [next(root.glob(f"leftImg8bit{end}.png")) for end in ("/train/ardmore/*", "_foggy/val/*/*_0.02")]
    for path in faulty:  # what a header does not show
        content, middle = path.read_bytes(), path.stat().st_size // 2
        path.write_bytes(content[:middle] + bytes(40) + content[middle + 40 :])
    assert run(["train", "--check", *config]) == 2
    message = capsys.readouterr().err
    assert "error: 2 of 6 images cannot be read" in message
    assert all(str(path) in message for path in faulty)
    assert not (tmp_path / "run").exists()


def test_detectron2_trains_and_is_evaluated_by_the_same_command(tmp_path, monkeypatch):
    pytest.importorskip("detectron2")
    from gh_downstream.detection.data.mini_cityscapes import make_mini_cityscapes

    make_mini_cityscapes(tmp_path / "mini_cityscapes", train=4, val=2, height=64, width=128)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    run_folder = tmp_path / "run"
    small = ["MODEL.WEIGHTS=", "INPUT.MIN_SIZE_TRAIN=(64,)", "INPUT.MIN_SIZE_TEST=64", "MODEL.RESNETS.NORM=BN"]
    steps = ["SOLVER.STEPS=()", "SOLVER.MAX_ITER=1", "TEST.EVAL_PERIOD=0", "SOLVER.IMS_PER_BATCH", "2"]
    assert run(["train", "--config", "detection/mini/da", f"OUTPUT_DIR={run_folder}", *small, *steps]) == 0
    found = [f"OUTPUT_DIR={tmp_path / 'again'}", "--checkpoint", str(run_folder / "model_final.pth")]
    assert run(["evaluate", "--config", str(run_folder / "config.yaml"), *found]) == 0
    assert results(tmp_path / "again" / "evaluation") == results(run_folder)


def test_overrides_of_detectron2_and_its_checkpoint_may_have_equals_signs(monkeypatch):
    pytest.importorskip("detectron2")
    from gh_downstream.detection.detectron2 import command_line

    asked = []
    monkeypatch.setattr(command_line, "work", asked.append)
    config = ["--config", "detection/mini/da", "GH.WEIGHTING", "cagrad:c=0.4", "SEED=3"]
    assert run(["train", *config]) == 0
    assert run(["evaluate", *config, "--checkpoint", "outputs/lr=0.1/model_final.pth"]) == 0
    changed = ["GH.WEIGHTING", "cagrad:c=0.4", "SEED", "3"]
    assert [call.opts for call in asked] == [changed, [*changed, "MODEL.WEIGHTS", "outputs/lr=0.1/model_final.pth"]]
    assert [(call.resume, call.eval_only) for call in asked] == [(True, False), (False, True)]


@pytest.fixture
def of_engine(request, tmp_path):
    """The configuration and the initial weights of a training, as the words that export them."""
    name, changes = request.param
    if name.endswith("rtdetr"):
        pytest.importorskip("gh_downstream.detection.native.detr", exc_type=ImportError)
    path = find_config(name)
    engine = engine_of(path)
    config = engine.load(path, changes)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(engine.content(config)))
    torch.save(engine.module.build_model(config).state_dict(), tmp_path / "weights.pt")
    return ["--config", str(tmp_path / "config.yaml"), "--checkpoint", str(tmp_path / "weights.pt")]


@pytest.mark.parametrize(
    ("of_engine", "library"),
    [
        (("retrieval/mini", []), "gh_downstream"),
        (("detection/native/mini-rtdetr", ["detector.weights=null", "training.init_from=null"]), "transformers"),
    ],
    indirect=["of_engine"],
    ids=["retrieval", "native"],
)
def test_every_export_has_a_model_card(of_engine, library, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(["export", *of_engine, "--output", str(tmp_path / "new")]) == 0
    card = ModelCard.load(tmp_path / "new" / "README.md")
    assert card.data.library_name == library
    assert len(list((tmp_path / "new").iterdir())) > 2  # the weights and what they are built by, too
    assert "- source: " in card.text
    capsys.readouterr()
    assert run(["export", *of_engine, "--output", str(tmp_path / "other"), "--push-to-hub", "name"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: --push-to-hub name: give OWNER/NAME"
    assert not (tmp_path / "other").exists()
