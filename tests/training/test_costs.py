import dataclasses
import statistics
from functools import partial

import pytest
import torch

from gh_downstream.training.costs import SWEEPS, Costs, Workload, costs_table, measure_costs

pytestmark = pytest.mark.slow

STEPS = ("plain", "twice", "large")


class Model(torch.nn.Module):
    """Of 3 parameters, 2 of them shared and 1 of them frozen."""

    shared = ("trunk",)

    def __init__(self):
        super().__init__()
        self.trunk = torch.nn.Linear(2, 1)
        self.trunk.bias.requires_grad_(False)
        self.head = torch.nn.Linear(1, 1, bias=False)


def workload(calls):
    """Steps that say when they run; the last one holds 200 MB while it does."""

    def step(name):
        calls.append(name)
        for _ in range(2 if name == "twice" else 1):
            torch.ones(2, 3) @ torch.ones(3, 5)
        if name == "large":
            torch.ones(50_000_000).sum()

    steps = {name: partial(step, name) for name in STEPS}
    return Workload("toy", Model(), steps, partial(calls.append, "reset"), "three steps")


def build():
    return workload([])


def test_every_sweep_runs_all_steps_from_the_reset_state_and_begins_with_another():
    calls = []
    costs = measure_costs(_Recorder(calls), rounds=2)
    assert set(calls[::2]) == {"reset"}
    sweeps = [calls[1::2][k : k + 3] for k in range(0, len(calls) // 2, 3)]
    interleaved = sweeps[: 3 * SWEEPS]  # one round to warm up
    assert all(set(sweep) == set(STEPS) for sweep in interleaved)
    counted = [name for sweep in sweeps[3 * SWEEPS :] for name in sweep]
    assert counted == [name for name in STEPS for _ in range(SWEEPS)]
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
    flops = {"plain": 2 * 10**9, "other": 3 * 10**9}
    peak_bytes = {"plain": 10 * 2**20, "other": 13 * 2**20}
    costs = Costs("toy", (30, 20), {"plain": plain, "other": other}, flops, peak_bytes, ["machine"])
    assert costs.ratios("plain") == (1, 1, 1)
    assert costs.ratios("other") == pytest.approx((1.2, 1.3, 1.4))
    table = costs_table([costs, dataclasses.replace(costs, name="second")], "gh-downstream benchmark")
    lower, median, upper = costs.ratios("other")
    first = [statistics.median(plain), 1, 1, 1, 10, 0]
    second = [statistics.median(other), median, lower, upper, 13, 3]
    assert table.rows[:2] == [
        ["toy", "plain", 30, 20, 2, 1, *first],
        ["toy", "other", 30, 20, 3, 1.5, *second],
    ]
    assert [row[1:] for row in table.rows[2:]] == [row[1:] for row in table.rows[:2]]
    assert {row[0] for row in table.rows[2:]} == {"second"}
    assert table.header == ["machine", "command: gh-downstream benchmark"]


def test_flops_and_parameters_are_counted():
    costs = measure_costs(build, rounds=2)
    product = 2 * 2 * 3 * 5
    assert costs.flops == {"plain": product, "twice": 2 * product, "large": product}
    assert costs.parameters == (3, 2)
    alone = dataclasses.replace(build(), steps={"plain": lambda: None})  # There is nothing to harmonize.
    assert alone.parameters() == (3, 0)


def test_the_header_names_machine_and_workload():
    header = " ".join(measure_costs(build, rounds=2).header)
    for part in (f"torch {torch.__version__}", f"{torch.get_num_threads()} thread", "three steps", "2 rounds"):
        assert part in header


def test_one_round_has_no_quartiles():
    with pytest.raises(ValueError, match="two rounds"):
        measure_costs(build, rounds=1)
