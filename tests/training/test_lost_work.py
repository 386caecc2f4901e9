"""What must not be lost: checkpoints, when an evaluation, a number, the disk or a file of the run goes wrong."""

import contextlib
import errno
import json
import math
import os
import resource
import subprocess

import pytest
import torch

from gh_downstream.training import CheckpointError, load_checkpoint, load_weights, read_metrics
from tests.kill import assert_same_run, exit_code, flat, held
from tests.training import toy


class EvaluationError(Exception):
    """It fails."""


def broken(model):
    raise EvaluationError


def run(folder, evaluate=toy.evaluate, batches=None, **settings):
    trainer = toy.trainer(toy.config(folder, **{"evaluate_first": False} | settings), batches=batches)
    trainer.evaluate = evaluate
    return trainer.run()


def test_an_evaluation_that_fails_costs_nothing(tmp_path):
    taken = []

    class Counted(toy.Batches):
        def __call__(self, step, rank, ranks):
            taken.append(step)
            return super().__call__(step, rank, ranks)

    run(tmp_path / "whole", best_metric="score")
    for _ in range(3):
        with pytest.raises(EvaluationError):
            run(tmp_path / "run", broken, Counted(), best_metric="score")
    assert taken == [0, 1, 2, 3]
    run(tmp_path / "run", batches=Counted(), best_metric="score")
    assert taken == list(range(18))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_evaluation_of_the_last_step_is_made_up_for(tmp_path):
    with pytest.raises(EvaluationError):
        run(tmp_path, broken, evaluate_every=None)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 18
    assert run(tmp_path, evaluate_every=None) == run(tmp_path, broken, evaluate_every=None) != {}


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """A callback stands for whatever spoils them after the gradient was looked at."""
    for k, (at, name) in enumerate([(4, "trunk.0.weight"), (18, "trunk.1.running_var")]):
        folder = tmp_path / str(k)
        trainer = toy.trainer(toy.config(folder, checkpoint_every=1, evaluate_every=None))
        train_step = trainer.train_step

        def spoiled(batch, trainer=trainer, train_step=train_step, at=at, name=name):
            line = train_step(batch)
            if trainer.step == at:
                trainer.module.state_dict()[name].fill_(math.nan)
            return line

        trainer.train_step = spoiled
        with pytest.raises(ValueError, match=rf"^{name} is not finite after step {at}; nothing of it was saved"):
            trainer.run()
        saved = load_checkpoint(folder / "last.pt")
        assert saved["step"] == at - 1
        assert all(value.isfinite().all() for value in saved["model"].values())


def test_averaged_weights_are_looked_at_too(tmp_path):
    trainer = toy.trainer(toy.config(tmp_path, ema=0.5))
    trainer._average.module.state_dict()["head.bias"].fill_(math.inf)
    with pytest.raises(ValueError, match=r"^head\.bias is not finite after step 3; .* lower optimizer\.lr"):
        trainer.run()
    assert not (tmp_path / "last.pt").exists()


def test_after_a_leap_the_last_checkpoint_but_one_is_good(tmp_path):
    leap = {"milestones": [6], "gamma": 1e38, "warmup_steps": 0, "momentum": 0.0}
    with pytest.raises(ValueError, match=r"at step 8 .*training\.init_from=.*previous\.pt goes on there") as caught:
        run(tmp_path / "run", checkpoint_every=1, evaluate_every=None, optimizer=leap)
    assert [load_checkpoint(tmp_path / "run" / f"{name}.pt")["step"] for name in ("last", "previous")] == [7, 6]
    named = str(caught.value).partition("training.init_from=")[2].split()[0]
    assert run(tmp_path / "again", init_from=named)["score"] > -10


def test_after_a_leap_before_any_checkpoint_none_is_advised(tmp_path):
    leap = {"milestones": [6], "gamma": 1e38, "warmup_steps": 0, "momentum": 0.0}
    with pytest.raises(ValueError, match=r"at step 8 .*lower optimizer\.lr") as caught:
        run(tmp_path, checkpoint_every=100, evaluate_every=None, optimizer=leap)
    assert "previous.pt" not in str(caught.value)


def test_of_two_trainings_in_one_folder_the_second_is_refused(tmp_path):
    run(tmp_path, steps=3)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != ".lock"}
    with (
        held(tmp_path) as other,
        pytest.raises(BlockingIOError, match=f"in use by another training, process {other.pid}"),
    ):
        run(tmp_path, steps=6)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != ".lock"}
    run(tmp_path, steps=6)


def run_in(folder, limit, steps, said=None):
    torch.set_num_threads(1)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        run(folder, steps=steps, best_metric="score")
    except OSError as error:
        said.write_text(str(error))
        raise SystemExit(3 if error.errno in (errno.EFBIG, errno.ENOSPC) else 1) from None


@pytest.mark.slow
@pytest.mark.parametrize("file", ["last.pt", "metrics.jsonl"])
def test_where_a_file_may_not_grow_the_checkpoint_is_kept(tmp_path, file):
    folder = tmp_path / "run"
    assert exit_code(run_in, folder, None, 6) == 0
    whole = (folder / "last.pt").stat().st_size
    if file == "metrics.jsonl":  # it has already grown so far that a few more lines do not fit
        line = json.dumps({"step": 1, "x": "y" * 70}) + "\n"
        (folder / file).write_text(line * ((whole + 1700) // len(line)))
    assert exit_code(run_in, folder, whole // 2 if file == "last.pt" else whole + 2000, 18, tmp_path / "said") == 3
    assert file in (tmp_path / "said").read_text()
    assert 6 <= load_checkpoint(folder / "last.pt")["step"] < 18
    assert not list(folder.glob(".*.tmp"))


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.name != "posix" or subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 1, 2, 3, 4])
def test_on_a_full_disk_the_checkpoint_is_kept_and_goes_on(small_disk, tmp_path, left):
    folder, rest = small_disk / "run", small_disk / "rest"
    assert exit_code(run_in, folder, None, 6) == 0
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    rest.write_bytes(bytes(free - left * 4096))
    assert exit_code(run_in, folder, None, 18, tmp_path / "said") == 3
    assert str(folder) in (tmp_path / "said").read_text()
    assert 6 <= load_checkpoint(folder / "last.pt")["step"] <= 18
    rest.unlink()
    assert exit_code(run_in, folder, None, 18) == 0
    assert exit_code(run_in, tmp_path / "whole", None, 18) == 0
    one, other = (load_checkpoint(path / "last.pt")["model"] for path in (folder, tmp_path / "whole"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_checkpoint_that_was_changed_on_the_disk_is_refused(tmp_path):
    run(tmp_path, steps=6)
    path = tmp_path / "last.pt"
    content, whole = path.read_bytes(), str(flat(load_checkpoint(path)))
    refused = 0
    for start in range(64, len(content) - 64, len(content) // 40):
        damaged = bytearray(content)
        damaged[start : start + 64] = bytes(255 - byte for byte in damaged[start : start + 64])
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):  # which it is, but for padding between the tensors
            assert str(flat(load_checkpoint(path))) == whole
            continue
        refused += 1
        with pytest.raises(CheckpointError, match=r"last\.pt is "):
            run(tmp_path, steps=6)
    assert refused > 10
    path.unlink()
    run(tmp_path, steps=9)
    assert load_checkpoint(path)["step"] == 9


def test_where_the_last_checkpoint_is_lost_it_is_said(tmp_path):
    run(tmp_path, steps=6, best_metric="score")
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).unlink()
    best = (tmp_path / "best.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"best\.pt is there and .*last\.pt is lost: .*init_from=.*best"):
        run(tmp_path, steps=6, best_metric="score")
    assert (tmp_path / "best.pt").read_bytes() == best


@pytest.mark.parametrize("key", ["config", "step", "optimizer"])
def test_a_checkpoint_that_lacks_something_is_refused_by_name(tmp_path, key):
    run(tmp_path, steps=3)
    state = load_checkpoint(tmp_path / "last.pt")
    del state[key]
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=rf"last\.pt lacks {key}: a training cannot go on from it"):
        run(tmp_path, steps=6)
    load_weights(toy.Toy(), tmp_path / "last.pt")


@pytest.mark.parametrize("line", ["{}", "nothing", '{"step": "x"}', "[1]", "[" * 3000, "{\udcff}"])
def test_a_broken_line_of_metrics_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "x": 2}\n' + line.encode(errors="surrogateescape") + b'\n{"step": 2}\n{"ste')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is no line of metrics with a step; remove it$"):
        read_metrics(path)
    path.write_bytes(b'{"step": 1, "x": 2}\n{"step": 2}\n{"ste')
    assert read_metrics(path) == [{"step": 1, "x": 2}, {"step": 2}]
