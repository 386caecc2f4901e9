"""Two gloo processes against one process on the joined batch, for methods of one update and of several."""

import multiprocessing
import socket

import pytest
import torch
from accelerate.state import AcceleratorState

from gh_downstream.training import read_metrics
from tests.classification import tiny_domains as tiny

CASES = {
    f"{name}, {method}": (baseline, options, method)
    for name, baseline, options in (
        ("mcd", "mcd", {"generator_steps": 2}),
        ("cdan", "cdan", {"entropy": False, "hidden": 8}),
        ("cdan+e", "cdan", {"hidden": 8}),
    )
    for method in ("none", "gh")
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """All cases in one pair of processes, as starting one is slow; and in this one."""
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(tiny.PRELOADED)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = [context.Process(target=tiny.run_rank, args=(rank, port, two, CASES)) for rank in range(2)]
    for process in processes:
        process.start()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)
    for name, case in CASES.items():
        tiny.run_case(case, one / name, "rank0.pt")
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return two, one


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case, folders):
    two, one = (folder / case for folder in folders)
    first, second = (torch.load(two / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    single = torch.load(one / "rank0.pt", weights_only=True)
    assert first.keys() == single.keys()
    for name, weights in single.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weights, rtol=1e-4, atol=1e-6)
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (two, one)]
    assert len(lines[0]) == len(lines[1]) == 3
    for ours, theirs in zip(*lines, strict=True):
        assert ours == pytest.approx(theirs, 1e-3, 1e-5)
