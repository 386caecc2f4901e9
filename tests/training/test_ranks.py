"""Two gloo processes against one process on the joined batch."""

import multiprocessing
import socket

import pytest
import torch

from gh_downstream.training import load_checkpoint, read_metrics
from tests.training import toy

CASES = {
    "parameters": {"weighting": "gh++", "warmup_steps": 3},
    "features": {"weighting": "gh++", "measure": "features"},
    "plain sum": {"weighting": "none"},
}


def train(case, two, one):
    """Train in two processes and in one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "accelerate", "torch.utils.tensorboard"])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    settings = (CASES[case], case == "features", {"ema": 0.8} if case == "plain sum" else {})
    processes = [context.Process(target=toy.run_rank, args=(rank, 2, port, two, *settings)) for rank in range(2)]
    processes.append(context.Process(target=toy.run_rank, args=(0, 1, None, one, *settings)))
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case, tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    train(case, two, one)
    first, second = (torch.load(two / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    single = torch.load(one / "rank0.pt", weights_only=True)
    for name, weights in first.items():
        assert torch.equal(weights, second[name]), name
        if name != "seen":  # A buffer sees the samples of its own rank; all end with those of the main one.
            torch.testing.assert_close(weights, single[name], rtol=1e-4, atol=1e-6)
    saved = load_checkpoint(two / "last.pt")
    assert all(torch.equal(saved["model"][name], weights) for name, weights in first.items())
    if case == "plain sum":
        averaged = load_checkpoint(one / "last.pt")["average"]
        assert not torch.equal(averaged["head.weight"], single["head.weight"])
        for name in averaged.keys() - {"seen"}:
            torch.testing.assert_close(saved["average"][name], averaged[name], rtol=1e-4, atol=1e-6)
    results = [torch.load(two / f"metrics{rank}.pt", weights_only=True) for rank in range(2)]
    assert results[0] == results[1] != {}
    for ours, theirs in zip(*(read_metrics(folder / "metrics.jsonl") for folder in (two, one)), strict=True):
        # In several processes a fork measures the norms up to a common factor.
        compared = {key for key in ours if case != "features" or not key.startswith("norm/")}
        assert ours.keys() == theirs.keys()
        assert {key: ours[key] for key in compared} == pytest.approx({key: theirs[key] for key in compared}, 1e-3, 1e-5)
