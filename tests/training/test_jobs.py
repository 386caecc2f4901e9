"""Jobs in processes of their own: what they return, what they say, and what becomes of the others when one fails."""

import functools
import logging
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from gh_downstream.training import load_checkpoint
from gh_downstream.training.jobs import Job, run_jobs
from tests.training import toy

pytestmark = pytest.mark.slow


def succeed(word):
    print("printed", word)
    print("to stderr", word, file=sys.stderr)
    logging.getLogger("somewhere").info("logged %s", word)
    return f"{word} on {torch.get_num_threads()} thread"


def fail(word):
    raise ValueError(f"no {word}")


def job(folder, name, function):
    return Job(name, folder / name / "log.txt", functools.partial(function, name))


def test_a_job_that_fails_does_not_stop_the_others(tmp_path, caplog, capfd):
    jobs = [job(tmp_path, "first", succeed), job(tmp_path, "second", fail), job(tmp_path, "third", succeed)]
    with caplog.at_level(logging.INFO):
        failed = run_jobs(jobs, 2)
    assert failed == {"second": f"no second (log: {tmp_path / 'second' / 'log.txt'})"}
    assert sorted(message.split(" on ")[0] for message in caplog.messages) == ["first: first", "third: third"]
    assert "Traceback" in (tmp_path / "second" / "log.txt").read_text()
    said = (tmp_path / "third" / "log.txt").read_text()
    for words in ("printed third", "to stderr third", "logged third"):
        assert words in said
    assert "third" not in capfd.readouterr().out


def end_abruptly(word):
    os._exit(9)


def test_a_job_whose_process_is_killed_does_not_stop_the_others(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        failed = run_jobs([job(tmp_path, "killed", end_abruptly), job(tmp_path, "later", succeed)], 1)
    log = tmp_path / "killed" / "log.txt"
    assert failed == {"killed": f"its process was killed, perhaps for want of memory (log: {log})"}
    assert [message.split(" on ")[0] for message in caplog.messages] == ["later: later"]


def test_the_cores_are_shared(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with caplog.at_level(logging.INFO):
        assert run_jobs([job(tmp_path, "alone", succeed)], 2) == {}
        assert run_jobs([job(tmp_path, name, succeed) for name in "ab"], 2) == {}
    threads = sorted(message.split(" on ")[1] for message in caplog.messages)
    assert threads == ["3 thread", "3 thread", "6 thread"]


def test_the_user_says_how_many_threads_a_job_has(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with caplog.at_level(logging.INFO):
        assert run_jobs([job(tmp_path, "alone", succeed)], 1) == {}
    assert caplog.messages == ["alone: alone on 2 thread"]


def test_no_job_is_nothing_to_do():
    assert run_jobs([]) == {}


def wait_for_ever(pid_file):
    pid_file.write_text(str(os.getpid()))
    time.sleep(600)
    return "woke up"


def test_a_job_ends_with_a_caller_that_is_killed(tmp_path):
    caller = multiprocessing.get_context("spawn").Process(
        target=run_jobs, args=([Job("a", tmp_path / "log.txt", functools.partial(wait_for_ever, tmp_path / "pid"))],)
    )
    caller.start()
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    assert is_running(pid)
    caller.kill()
    caller.join()
    wait_until(lambda: not is_running(pid))


def train(folder):
    torch.set_num_threads(1)
    toy.trainer(toy.config(folder, steps=100_000, checkpoint_every=50_000, evaluate_every=None)).run()
    return "finished"


def train_two(folder):
    jobs = [Job(name, folder / name / "log.txt", functools.partial(train, folder / name)) for name in "abc"]
    run_jobs(jobs, 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_jobs_which_end_with_checkpoints(tmp_path, number):
    caller = multiprocessing.get_context("spawn").Process(target=train_two, args=(tmp_path,))
    caller.start()
    for name in "ab":
        wait_until(lambda name=name: (lines := tmp_path / name / "metrics.jsonl").exists() and lines.stat().st_size)
    locks = [int((tmp_path / name / ".lock").read_text()) for name in "ab"]
    os.kill(caller.pid, number)
    caller.join()
    assert caller.exitcode == 128 + number
    assert not any(map(is_running, locks))
    for name in "ab":
        assert load_checkpoint(tmp_path / name / "last.pt")["step"] > 0
        assert "stopped by SIGTERM after step" in (tmp_path / name / "log.txt").read_text()
    assert not (tmp_path / "c").exists()


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Where nobody asks for its exit status, a process that has ended stays in the table as a zombie.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_job_at_a_time_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        run_jobs([job(tmp_path, "a", succeed)], 0)
