"""SIGTERM and Ctrl-C: what a training leaves behind, and how it ends."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from gh_downstream.training import load_checkpoint, stopping
from gh_downstream.training.stopping import Stopped, StopSignals
from tests.kill import assert_same_run
from tests.ranks import CONTEXT
from tests.training import toy
from tests.training.test_resume import finish

NUMBERS = [signal.SIGTERM, signal.SIGINT]


class Signalling(toy.Batches):
    """Sends its process a signal while a batch is made, as if from outside."""

    def __init__(self, step, number):
        super().__init__()
        self.step, self.number = step, number

    def __call__(self, step, rank, ranks):
        if step == self.step and rank == ranks - 1:
            os.kill(os.getpid(), self.number)
        return super().__call__(step, rank, ranks)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("step", "due"), [(4, False), (3, True), (17, True)])
def test_the_step_is_finished_and_saved_and_a_line_says_so(tmp_path, caplog, number, step, due):
    settings = toy.config(tmp_path, best_metric="score")
    with caplog.at_level(logging.INFO), pytest.raises(Stopped) as stopped:
        toy.trainer(settings, batches=Signalling(step, number)).run()
    assert stopped.value.code == 128 + number
    assert f"stopped by {number.name} after step {step + 1}; call again to go on" in caplog.messages[-1]
    state = load_checkpoint(tmp_path / "last.pt")
    assert (state["step"], state["unevaluated"] is not None) == (step + 1, due)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    toy.trainer(settings).run()
    toy.trainer(toy.config(tmp_path / "whole", best_metric="score")).run()
    assert_same_run(tmp_path, tmp_path / "whole")


def test_the_same_signal_from_terminal_and_launcher_is_one_and_a_later_one_ends_at_once(monkeypatch):
    with StopSignals() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed() == signal.SIGINT
        monkeypatch.setattr(stopping, "_PATIENCE", 0.0)
        with pytest.raises(Stopped) as stopped:
            signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 143


def test_ignored_signals_stay_ignored_and_other_threads_have_none():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed() == 0
        thread = threading.Thread(target=StopSignals().__enter__)
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def run_until_stopped(rank, output):
    try:
        toy.trainer(toy.config(output), toy.Toy(random_layers=False), Signalling(4, signal.SIGTERM)).run()
    except Stopped as stopped:
        return stopped.code, load_checkpoint(output / "last.pt")["step"]


@pytest.mark.slow
def test_ranks_stop_at_the_same_step(tmp_path, ranks):
    assert ranks(run_until_stopped, tmp_path, group=False) == [(143, 6), (143, 6)]


@pytest.mark.slow
def test_stopped_from_outside_it_ends_with_the_same_bits(tmp_path):
    process = CONTEXT.Process(target=toy.run, args=(tmp_path / "stopped",), kwargs={"workers": 2, "steps": 400})
    process.start()
    while not (tmp_path / "stopped" / "last.pt").exists():
        time.sleep(0.001)
    process.terminate()
    process.join()
    assert process.exitcode == 143
    step = load_checkpoint(tmp_path / "stopped" / "last.pt")["step"]
    assert 3 <= step < 400
    assert finish(tmp_path / "stopped", steps=step + 10) == 0
    assert finish(tmp_path / "whole", steps=step + 10) == 0
    states = [toy_state(tmp_path / name) for name in ("stopped", "whole")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def toy_state(folder):
    return load_checkpoint(folder / "last.pt")["model"]


def launched(*words):
    """Two processes of ``gh-downstream train``, started by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "gh_downstream.cli", "train", "training.steps=100000", "training.workers=0", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture
def digits(tmp_path):
    """The launcher of a training that has written its first checkpoint, of step 5."""
    words = ["--config", "classification/digits", f"output={tmp_path / 'run'}", "batch_size=8"]
    launcher = launched(*words, "training.log_every=1", "training.evaluate_every=5")
    while not (tmp_path / "run" / "last.pt").exists():
        assert launcher.poll() is None
        time.sleep(0.1)
    yield launcher
    launcher.kill()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_others_within_a_minute_by_its_name(tmp_path, digits, rank):
    children = Path(f"/proc/{digits.pid}/task/{digits.pid}/children").read_text().split()
    first = (tmp_path / "run" / ".lock").read_text().strip()
    assert first in children
    os.kill(int(first if rank == 0 else next(pid for pid in children if pid != first)), signal.SIGKILL)
    _, said = digits.communicate(timeout=60)
    assert digits.returncode != 0
    assert re.search(rf"rank\s*:\s*{rank} \(local_rank", said), said[-3000:]
    assert "Signal 9 (SIGKILL)" in said
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_to_the_launcher_ends_all_ranks_with_a_checkpoint_of_their_last_step(tmp_path, digits, number):
    digits.send_signal(number)
    _, said = digits.communicate(timeout=60)
    assert digits.returncode != 0
    (stopped,) = re.findall(r"last\.pt: stopped by \w+ after step (\d+); call again to go on", said)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == int(stopped) >= 5


@pytest.mark.slow
def test_a_rank_whose_data_cannot_be_read_ends_the_others_by_its_message(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    for place in ("source", "target"):
        for name in ("a/0", "a/1", "b/0", "b/1", "b/2"):
            path = tmp_path / place / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    whole = path.read_bytes()  # The header stays as it is, which alone is looked at before the first step.
    (tmp_path / "source" / "b" / "2.png").write_bytes(whole[:300] + bytes(300) + whole[600:])
    config = tmp_path / "config.yaml"
    domains = {domain: {"format": "folder", "path": str(tmp_path / domain)} for domain in ("source", "target")}
    content = {"output": str(tmp_path / "run"), "method": "dann", "transform": "digits", "batch_size": 2} | domains
    config.write_text(yaml.safe_dump(content))
    launcher = launched("--config", str(config), "training.seed=16")  # Rank 1 reads it first, at the second step.
    _, said = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert "error: " + str(tmp_path / "source" / "b" / "2.png") + " is not a readable image" in said
    # The other may have noticed the lost connection, and have ended, before torchrun looks: then both are listed.
    assert re.search(r"rank\s*:\s*1 \(local_rank: 1\)\n\s*exitcode\s*: 2 ", said), said
