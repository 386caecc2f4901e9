import statistics
from functools import partial

import pytest
import torch

from gh_downstream.training.benchmark import SWEEPS, Costs, Workload, measure_costs

STEPS = ("plain", "twice", "large")


def workload(calls):
    """Steps that say when they run; the last one holds 200 MB while it does."""

    def step(name):
        calls.append(name)
        if name == "large":
            torch.ones(50_000_000).sum()

    steps = {name: partial(step, name) for name in STEPS}
    return Workload(torch.nn.Linear(1, 1), steps, partial(calls.append, "reset"), ["three steps"])


def build():
    return workload([])


def test_every_sweep_runs_all_steps_from_the_reset_state_and_begins_with_another():
    calls = []
    costs = measure_costs(_Recorder(calls), rounds=2)
    assert set(calls[::2]) == {"reset"}
    sweeps = [calls[1::2][k : k + 3] for k in range(0, len(calls) // 2, 3)]
    assert len(sweeps) == 3 * SWEEPS  # one round to warm up
    assert all(set(sweep) == set(STEPS) for sweep in sweeps)
    assert [sweep[0] for sweep in sweeps[:4]] == ["plain", "twice", "large", "plain"]
    assert {name: len(seconds) for name, seconds in costs.seconds.items()} == dict.fromkeys(STEPS, 2)


class _Recorder:
    """Builds the workload; other processes get a copy, whose calls stay there."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self):
        return workload(self.calls)


def test_the_peak_of_memory_is_that_of_one_step_alone():
    held = torch.ones(100_000_000)  # What this process holds is no part of it.
    costs = measure_costs(build, rounds=2)
    assert costs.peak_bytes["plain"] < held.numel() * held.element_size() + 200e6
    assert 150e6 < costs.peak_bytes["large"] - costs.peak_bytes["plain"] < 250e6
    assert abs(costs.peak_bytes["twice"] - costs.peak_bytes["plain"]) < 20e6


def test_ratios_are_paired_within_rounds():
    plain = [1.0, 10.0, 2.0, 5.0, 1.0]
    factors = [1.1, 1.3, 1.2, 1.5, 1.4]  # quartiles by hand: 1.2, 1.3, 1.4
    other = [a * b for a, b in zip(plain, factors, strict=True)]
    costs = Costs({"plain": plain, "other": other}, {"plain": 10 * 2**20, "other": 13 * 2**20}, ["machine"])
    assert costs.ratios("plain") == (1, 1, 1)
    assert costs.ratios("other") == pytest.approx((1.2, 1.3, 1.4))
    table = costs.table("Cost", "python benchmark.py")
    lower, median, upper = costs.ratios("other")
    assert table.rows[1] == ["other", statistics.median(other), median, lower, upper, 3]
    assert table.header == ["machine", "command: python benchmark.py"]


def test_the_header_names_machine_and_workload():
    header = " ".join(measure_costs(build, rounds=2).header)
    for part in (f"torch {torch.__version__}", f"{torch.get_num_threads()} thread", "three steps", "2 rounds"):
        assert part in header


def test_one_round_has_no_quartiles():
    with pytest.raises(ValueError, match="two rounds"):
        measure_costs(build, rounds=1)
