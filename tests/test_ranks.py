"""Ranks of tests: what they return, what they are given, and that none of them outlives a failure."""

import multiprocessing
import os
import time

import pytest
import torch
from torch import distributed

pytestmark = pytest.mark.slow

LIMIT = 120.0


def summed(rank, tensor, word):
    tensor += rank
    distributed.all_reduce(tensor)
    return {"rank": rank, "sum": tensor, "word": word, "threads": torch.get_num_threads(), "set": os.environ["WORD"]}


def test_ranks_work_together_on_copies_in_the_environment_of_the_caller(ranks, monkeypatch):
    monkeypatch.setenv("WORD", "told")
    tensor = torch.tensor([1.0, 2.0])
    results = ranks(summed, tensor, "said", number=3)
    assert tensor.tolist() == [1.0, 2.0]
    for rank, result in enumerate(results):
        assert result.pop("sum").tolist() == [6.0, 9.0]
        assert result == {"rank": rank, "word": "said", "threads": 1, "set": "told"}


def makes_its_group(rank):
    before = distributed.is_initialized()
    distributed.init_process_group("gloo")
    return before, distributed.get_rank(), distributed.get_world_size()


def test_the_group_can_be_left_to_the_function(ranks):
    assert ranks(makes_its_group, group=False) == [(False, 0, 2), (False, 1, 2)]


def alone(rank):
    return distributed.is_initialized(), "WORLD_SIZE" in os.environ


def test_a_single_rank_has_no_group(ranks):
    assert ranks(alone, number=1) == [(False, False)]


def fail(rank):
    if rank == 1:
        raise ValueError("a cup is broken")
    distributed.barrier()


def end_abruptly(rank):
    if rank == 1:
        os._exit(9)
    time.sleep(3600)


def hang(rank):
    if rank == 1:
        time.sleep(3600)
    return rank


@pytest.mark.parametrize(
    ("function", "limit", "message"),
    [
        (fail, LIMIT, r"(?s)rank 1 .*in fail\n.*a cup is broken"),
        (end_abruptly, LIMIT, "rank 1 .*exit code 9"),
        (hang, 2.0, r"in time: .*\[.*1\]"),
    ],
)
def test_a_failure_is_told_and_no_process_is_left(ranks, function, limit, message):
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match=message):
        ranks(function, limit=limit)
    assert time.monotonic() - begin < LIMIT
    assert multiprocessing.active_children() == []
