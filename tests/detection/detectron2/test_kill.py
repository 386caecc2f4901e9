"""A training on Detectron2, killed at any of its writes, and on a disk that is full."""

import json
import os
import random
import resource
import signal
from pathlib import Path

import pytest
import torch
from iopath.common import file_io

from gh_downstream.detection.data.mini_cityscapes import make_mini_cityscapes
from gh_downstream.detection.detectron2.metrics import read_metrics
from gh_downstream.detection.detectron2.trainer import load_cfg, train
from tests.integrations.detectron2 import toy_detectors as common_detectors  # noqa: F401  # skips where there is no Detectron2
from tests.kill import arm, exit_code, flat, kill_and_resume
from tests.ranks import preload

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[3] / "configs" / "detection" / "mini" / "mean-teacher.yaml"
SHORT = {
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.NORM": "BN",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": "64",
    "SOLVER.MAX_ITER": "6",
    "SOLVER.STEPS": "(5,)",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "TEST.EVAL_PERIOD": "4",
    "DA.BURN_IN_ITERS": "1",
    "GH.WEIGHTING": "gh++",
    "GH.LOG_PERIOD": "1",
    "GH.PERIOD": "2",
    "TEACHER.SCORE_THRESHOLD": "0.1",
}


def cfg_of(output, **changes):
    values = {**SHORT, **changes, "OUTPUT_DIR": str(output)}
    return load_cfg(str(CONFIG), [word for pair in values.items() for word in pair])


def opened(path, mode, **options):
    """What Detectron2 opens files with, by way of the method that is watched."""
    return Path(path).open(mode)


class Run:
    """The training, with all files watched, those that Detectron2 opens too."""

    def __init__(self, data):
        self.data = data

    def __call__(self, output, point, counted=None):
        torch.set_num_threads(1)
        os.environ["DETECTRON2_DATASETS"] = str(self.data)
        events = arm(point)
        file_io.open = opened
        train(cfg_of(output), resume=True)
        if counted is not None:
            counted.write_text(json.dumps(events))


def measured(folder):
    """What metrics.json has of each iteration but for times, and medians of what a killed process had in its memory."""
    return {
        line["step"]: {key: value for key, value in line.items() if key.startswith(("gh/", "bbox/", "lr"))}
        for line in read_metrics(folder / "metrics.json")
    }


def assert_same_run(folder, reference):
    for name in ("model_final.pth", "teacher_final.pth"):
        one, other = (flat(torch.load(path / name, weights_only=True)) for path in (folder, reference))
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key
    assert (folder / "results.json").read_text() == (reference / "results.json").read_text()
    for line in (folder / "metrics.json").read_text().splitlines():
        json.loads(line)
    one, other = measured(folder), measured(reference)
    # The checkpoint of the fourth step is saved before its evaluation and entry, which a kill in between takes along.
    assert other.keys() - one.keys() <= {4}
    for step, line in one.items():
        assert line.items() <= other[step].items()
        assert {key for key in other[step] if key.startswith("gh/")} <= line.keys()
    assert not list(folder.glob(".*.tmp"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_mini_cityscapes(folder / "mini_cityscapes", train=8, val=2, height=64, width=128)
    return folder


def test_killed_at_any_write_it_ends_with_the_same_bits(data, tmp_path):
    preload()
    kill_and_resume(Run(data), tmp_path, 6, random.Random(0), assert_same_run)


@pytest.mark.parametrize(
    "event", ["write metrics.json", "write .model_*", "replace last_checkpoint", "write .config.yaml.tmp"]
)
def test_killed_in_the_middle_of_a_file_it_ends_with_the_same_bits(data, tmp_path, event):
    preload()
    train_to = Run(data)
    assert exit_code(train_to, tmp_path / "whole", "*:0") == 0
    assert exit_code(train_to, tmp_path / "killed", f"{event}:3") in (0, -signal.SIGKILL)
    assert exit_code(train_to, tmp_path / "killed", f"{event}:2") in (0, -signal.SIGKILL)
    assert exit_code(train_to, tmp_path / "killed", "*:0") == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def fills(data, output, size, answer):
    """A training whose files may not grow beyond a size, as on a disk that is full."""
    os.environ["DETECTRON2_DATASETS"] = str(data)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        train(cfg_of(output, **{"SOLVER.CHECKPOINT_PERIOD": "1"}), resume=True)
    except OSError as error:
        answer.write_text(str(error))


def test_on_a_full_disk_the_last_checkpoint_stays(data, tmp_path, monkeypatch):
    output, answer = tmp_path / "run", tmp_path / "answer"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    train(cfg_of(output, **{"SOLVER.MAX_ITER": "2", "SOLVER.STEPS": "()"}))
    before = {path.name: path.read_bytes() for path in output.glob("*.pth")}
    assert exit_code(fills, data, output, 100_000, answer) == 0
    message = answer.read_text()
    assert "File too large" in message
    assert "model_0000002.pth" in message
    assert "\n" not in message
    assert {path.name: path.read_bytes() for path in output.glob("*.pth")} == before
    assert not list(output.glob(".*.tmp"))
    train(cfg_of(output), resume=True)
