"""What a way of training costs: variants of one step, interleaved in one run, as ratios to the first of them."""

import logging
import multiprocessing
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gh_downstream.harmonization.parameters import select_parameters
from gh_downstream.reporting import Cell, Table
from gh_downstream.training.metrics import resident_peak

logger = logging.getLogger(__name__)

SWEEPS = 4
"""Steps of each variant in a round; a variant that works in a period of 4 steps is measured over all of it."""


@dataclass(frozen=True)
class Workload:
    """Variants of one training step that begin at the same state.

    Attributes:
        name: Names its rows in the table.
        model: What the steps train, on its device; its ``shared`` names the parameters that are harmonized.
        steps: The variants by name, first the one that the others are compared with.
        reset: Restores the weights and whatever else a step depends on; called before each step, not measured.
        description: What the steps compute, for the header of the table: model, batch, precision.
    """

    name: str
    model: nn.Module
    steps: Mapping[str, Callable[[], object]]
    reset: Callable[[], object]
    description: str

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def parameters(self) -> tuple[int, int]:
        """Count the parameters that are trained, and those of them over which gradients are harmonized, if any are."""
        shared = select_parameters(self.model.shared, self.model) if len(self.steps) > 1 else []
        trained, harmonized = (
            sum(parameter.numel() for parameter in group if parameter.requires_grad)
            for group in (self.model.parameters(), shared)
        )
        return trained, harmonized

    def run(self, variant: str) -> tuple[float, int]:
        """Run one step of a variant.

        Returns:
            On CPU the CPU seconds of the process, all threads together, and 0. On CUDA the elapsed seconds, and the
            largest number of bytes that were allocated at a time.
        """
        self.reset()
        if self.device.type != "cuda":
            began = time.process_time()
            self.steps[variant]()
            return time.process_time() - began, 0
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        began = time.perf_counter()
        self.steps[variant]()
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - began, torch.cuda.max_memory_allocated(self.device)

    def flops(self, variant: str) -> int:
        """Return the floating-point operations of a step as torch counts them, the mean of as many as a round has.

        Those of matrix products, convolutions and attention, forward and backward, a multiplication and an addition
        being two. Whatever works element by element is not in it: activations, normalization, pooling, the weighing of
        gradients, the update of the weights.
        """
        with FlopCounterMode(display=False) as counter:
            for _ in range(SWEEPS):
                self.reset()
                self.steps[variant]()
        return counter.get_total_flops() // SWEEPS


@dataclass(frozen=True)
class Costs:
    """What the variants of a workload cost.

    Attributes:
        name: Names the workload.
        parameters: As :meth:`Workload.parameters` counts them.
        seconds: For each variant the mean seconds of a step in each of the rounds.
        flops: For each variant those of a step, as :meth:`Workload.flops` counts them.
        peak_bytes: For each variant its peak of memory.
        header: The machine, the workload and the number of rounds, for the table.
    """

    name: str
    parameters: tuple[int, int]
    seconds: Mapping[str, Sequence[float]]
    flops: Mapping[str, int]
    peak_bytes: Mapping[str, int]
    header: Sequence[str]

    def ratios(self, variant: str) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the ratios to the first variant in the same round."""
        baseline = next(iter(self.seconds.values()))
        ratios = [spent / plain for spent, plain in zip(self.seconds[variant], baseline, strict=True)]
        lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
        return lower, median, upper

    def row(self, variant: str) -> list[Cell]:
        """Return the row of a variant in :func:`costs_table`."""
        plain = next(iter(self.seconds))
        lower, median, upper = self.ratios(variant)
        work, peak = self.flops[variant], self.peak_bytes[variant]
        # A model without a matrix product has no FLOPs that are counted.
        of_plain = work / self.flops[plain] if self.flops[plain] else float("nan")
        memory = [round(size / 2**20) for size in (peak, peak - self.peak_bytes[plain])]
        time_spent = [statistics.median(self.seconds[variant]), median, lower, upper]
        return [self.name, variant, *self.parameters, work / 1e9, of_plain, *time_spent, *memory]


def costs_table(measured: Sequence[Costs], command: str) -> Table:
    """Return what workloads cost as a table with a row for each variant of each; ``command`` measured them."""
    lines = dict.fromkeys(line for costs in measured for line in costs.header)
    return Table(
        "Cost of one training step",
        [
            *("workload", "step", "parameters", "shared", "GFLOP", "ratio of FLOPs"),
            *("seconds", "ratio", "lower quartile", "upper quartile", "peak MiB", "extra MiB"),
        ],
        [costs.row(variant) for costs in measured for variant in costs.seconds],
        [*lines, f"command: {command}"],
        [
            "ratios and extra MiB: to the first row of the same workload",
            "seconds: median over the rounds; ratio: in the same round, median and quartiles over the rounds",
            "FLOPs: matrix products, convolutions and attention, forward and backward; nothing that works element by "
            "element, neither the dot products of the Gramian nor the update of the weights",
            "peak MiB: on CPU resident memory of the process, with Python and torch",
        ],
        digits=3,
    )


def measure_costs(build: Callable[[], Workload], rounds: int) -> Costs:
    """Measure the variants of a workload in turn, so that what else the machine does falls on all of them alike.

    A round is :data:`SWEEPS` sweeps over all variants, each beginning with another one. A first round warms up and is
    dropped. On CPU the peak of memory is the largest resident set of a process that runs one variant alone.

    Args:
        build: Makes the workload. On CPU other processes call it too, so that it has to be picklable.
        rounds: Number of rounds, at least 2.

    Raises:
        ValueError: There are fewer than two rounds, which have no quartiles.
    """
    if rounds < 2:
        raise ValueError(f"quartiles need at least two rounds, got {rounds}")
    workload = build()
    names = list(workload.steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peak_bytes = dict.fromkeys(names, 0)
    for number in range(rounds + 1):
        spent = dict.fromkeys(names, 0.0)
        for sweep in range(number * SWEEPS, (number + 1) * SWEEPS):
            first = sweep % len(names)
            for name in names[first:] + names[:first]:
                took, peak = workload.run(name)
                spent[name] += took / SWEEPS
                peak_bytes[name] = max(peak_bytes[name], peak)
        if number > 0:
            for name in names:
                seconds[name].append(spent[name])
            plain, *others = spent.values()
            ratios = "".join(f"; {name} {took / plain:.2f}" for name, took in zip(names[1:], others, strict=True))
            shown = f"{plain:.3f} s a step of {names[0]}{ratios}"
            logger.info("%s, round %d/%d: %s", workload.name, number, rounds, shown)
    flops = {name: workload.flops(name) for name in names}
    if workload.device.type != "cuda":
        peak_bytes = {name: _peak_bytes_alone(build, name) for name in names}
    described = f"{workload.name}: {workload.description}"
    header = [_machine(workload.device), described, f"{rounds} rounds of {SWEEPS} steps of each, interleaved"]
    return Costs(workload.name, workload.parameters(), seconds, flops, peak_bytes, header)


def _peak_bytes_alone(build: Callable[[], Workload], variant: str) -> int:
    # On Linux a process that is spawned inherits the peak of this one; one that is forked by a server does not.
    context = multiprocessing.get_context("forkserver")
    # What every process would import for itself, which takes seconds; an optimizer that is built imports the first.
    ours = [name for name in sys.modules if name.partition(".")[0] in ("gh_downstream", "torchjd")]
    context.set_forkserver_preload(["torch._dynamo", *ours])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_run_and_read_peak, build, variant, torch.get_num_threads()).result()


def _run_and_read_peak(build: Callable[[], Workload], variant: str, threads: int) -> int:
    torch.set_num_threads(threads)
    workload = build()
    for _ in range(SWEEPS):
        workload.run(variant)
    return resident_peak()


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}; elapsed time, allocated memory"
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = named[1] if named else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"CPU {name}, {threads} thread(s), torch {torch.__version__}; CPU time of the process, resident memory"
