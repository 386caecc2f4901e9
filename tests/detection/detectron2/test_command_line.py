"""Processes that cannot begin, and processes that end before their time."""

import os
import signal
import socket
import threading
import time

import pytest
import torch
from detectron2.utils import comm

from gh_downstream.cli import train_net
from gh_downstream.detection.detectron2.command_line import launch_all
from tests.integrations.detectron2 import toy_detectors as common_detectors  # noqa: F401  # skips where there is no Detectron2


def error_of(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        train_net.main(words)
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="one GPU is not enough for two processes, and is told first")
def test_a_port_in_use(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert f"--dist-url {url}: port " in error_of(capsys, "--num-gpus", "2", "--dist-url", url)


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="one GPU is not enough for two processes, and is told first")
def test_an_address_that_is_none(capsys):
    assert "--dist-url nonsense: auto, or" in error_of(capsys, "--num-gpus", "2", "--dist-url", "nonsense")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_processes_without_gpus_are_told_once(capsys):
    words = ["--num-gpus", "2", "--dist-url", "auto", "MODEL.DEVICE", "cuda"]
    assert error_of(capsys, *words) == "error: MODEL.DEVICE cuda: torch finds 0 GPU(s) here; take one of them, or cpu"


@pytest.mark.parametrize("flags", [[], ["--eval-only", "MODEL.WEIGHTS", "weights.pth"]], ids=["train", "evaluate"])
@pytest.mark.parametrize("output", ["taken", "taken/run", "/proc/q"])
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch, capsys, output, flags):
    monkeypatch.chdir(tmp_path)
    for name in ("taken", "weights.pth"):
        (tmp_path / name).touch()
    words = ["--config-file", "detection/mini/source-only", *flags, "OUTPUT_DIR", output]
    assert error_of(capsys, *words).startswith(f"error: OUTPUT_DIR {output}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken", "weights.pth"]


def test_a_mistake_leaves_no_folder_behind_but_one_that_was_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for output in ("new", "mine"):
        words = ["--config-file", "detection/mini/burn-in", "DATASETS.TRAIN", "('none',)", "OUTPUT_DIR", output]
        assert "no data set is registered as 'none'" in error_of(capsys, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "log.txt").is_file()


@pytest.mark.parametrize("place", [0, 2, 4])
def test_debug_anywhere_shows_the_trace(tmp_path, place):
    words = ["--config-file", "detection/mini/burn-in", "OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "foo"]
    words.insert(place, "--debug")
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE foo"):
        train_net.main(words)


def nothing(arguments):
    pass


def killed(arguments):
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def waits_for_a_signal(arguments):
    raise SystemExit(128 + signal.sigwait([signal.SIGTERM]))


def blocked(arguments):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    open(f"{arguments.config_file}{comm.get_rank()}", "w").close()
    comm.synchronize()
    waits_for_a_signal(arguments)


@pytest.fixture(autouse=True)
def handlers():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.slow
def test_a_killed_process_ends_the_others(capsys):
    begun = time.monotonic()
    assert launch_all(["--num-gpus", "2", "--dist-url", "auto"], None, nothing, killed) == 128 + signal.SIGKILL
    assert time.monotonic() - begun < 60
    assert "error: process 1 terminated with signal SIGKILL, and the others were ended" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_reaches_every_process(tmp_path):
    def terminate():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    words = ["--num-gpus", "2", "--dist-url", "auto", "--config-file", str(tmp_path / "ready")]
    assert launch_all(words, None, nothing, blocked) == 128 + signal.SIGTERM
