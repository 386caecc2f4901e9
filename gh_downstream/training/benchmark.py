"""What a way of training costs: variants of one step, interleaved in one run, as ratios to the first of them."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from gh_downstream.harmonization import (
    GH,
    GHPlusPlus,
    GHPlusPlusOfficial,
    Harmonizer,
    Report,
    Weighting,
    parse_weighting,
)
from gh_downstream.harmonization.parameters import select_parameters
from gh_downstream.reporting import Cell, Table
from gh_downstream.training.config import ExperimentConfig

logger = logging.getLogger(__name__)

SWEEPS = 4
"""Steps of each variant in a round; a variant that works in a period of 4 steps is measured over all of it."""

Backward = Callable[[dict[str, Tensor]], object]
"""Leaves a gradient of the losses ``alignment`` and ``task`` in ``.grad`` of all parameters."""


@dataclass(frozen=True)
class Workload:
    """Variants of one training step that begin at the same state.

    Attributes:
        model: What the steps train, on its device. Those of :func:`adaptation_workload` leave their gradient in
            ``.grad``.
        steps: The variants by name, first the one that the others are compared with.
        reset: Restores weights, random numbers and empty gradients; called before each step, not measured.
        description: What the steps compute, for the header of the table: model, batch, number of parameters.
    """

    model: nn.Module
    steps: Mapping[str, Callable[[], object]]
    reset: Callable[[], object]
    description: Sequence[str]

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

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
        """Run one step of a variant, and count its floating-point operations as torch counts them.

        Returns:
            Those of matrix products, convolutions and attention, forward and backward, a multiplication and an addition
            being two. Whatever works element by element is not in it: activations, normalization, pooling, the weighing
            of gradients, the update of the weights.
        """
        self.reset()
        with FlopCounterMode(display=False) as counter:
            self.steps[variant]()
        return counter.get_total_flops()


@dataclass(frozen=True)
class Costs:
    """What the variants of a workload cost.

    Attributes:
        seconds: For each variant the mean seconds of a step in each of the rounds.
        peak_bytes: For each variant its peak of memory.
        header: The machine, the workload and the number of rounds, for the table.
    """

    seconds: Mapping[str, Sequence[float]]
    peak_bytes: Mapping[str, int]
    header: Sequence[str]

    def ratios(self, variant: str) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the ratios to the first variant in the same round."""
        baseline = next(iter(self.seconds.values()))
        ratios = [spent / plain for spent, plain in zip(self.seconds[variant], baseline, strict=True)]
        lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
        return lower, median, upper

    def table(self, title: str, command: str) -> Table:
        """Return the costs as a table.

        Args:
            title: One line.
            command: What was called to measure them.
        """
        least = next(iter(self.peak_bytes.values()))
        rows: list[list[Cell]] = []
        for name, seconds in self.seconds.items():
            lower, median, upper = self.ratios(name)
            extra = round((self.peak_bytes[name] - least) / 2**20)
            rows.append([name, statistics.median(seconds), median, lower, upper, extra])
        return Table(
            title,
            ["step", "seconds", "ratio", "lower quartile", "upper quartile", "extra MiB"],
            rows,
            [*self.header, f"command: {command}"],
            [
                "seconds: median; ratio: to the first row in the same round, median and quartiles over the rounds; "
                "extra MiB: peak of memory over that of the first row"
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
            logger.info("round %d/%d: %.3f s a step of %s", number, rounds, spent[names[0]], names[0])
    if workload.device.type != "cuda":
        peak_bytes = {name: _peak_bytes_alone(build, name) for name in names}
    measured = f"{rounds} rounds of {SWEEPS} steps of each, interleaved"
    return Costs(seconds, peak_bytes, [*_machine(workload.device), *workload.description, measured])


def check_precision(config: ExperimentConfig) -> None:
    """Check that a configuration asks for the precision that everything is measured in.

    Raises:
        ValueError: It asks for another one.
    """
    if config.training.mixed_precision != "no":
        raise ValueError("the benchmark runs in float32: set training.mixed_precision=no")


def adaptation_workload(
    config: ExperimentConfig,
    model: nn.Module,
    optimizer: Optimizer,
    batch: Mapping[str, Any],
    network: str,
    data: str,
) -> Workload:
    """Make the plain adaptation step of a model, and the same step harmonized in several ways.

    A step is the forward pass on the batch, backward passes, gradient clipping and the optimizer's update, in float32
    and from the weights that the model has now. It runs on the GPU if there is one.

    Args:
        config: Its seed and the norm that gradients are clipped to are read, not how it harmonizes.
        model: As :class:`~gh_downstream.training.Trainer` takes it, with all that it reads: returns losses by side, has
            ``shared``, and forks its features by the weighting in ``harmonize_features`` with ``reports`` of that.
        optimizer: Of the parameters of the model.
        batch: Arguments of the model's forward pass, with alignment losses.
        network: What the model is, for the header of the table.
        data: What the batch holds, for the same.

    Raises:
        ValueError: The configuration asks for another precision.
    """
    check_precision(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = send_to_device(batch, device)
    module: Any = model.to(device).train()  # Its attributes are beyond those of a module.
    trained: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    initial = [parameter.detach().clone() for parameter in trained]
    shared = [parameter for parameter in select_parameters(module.shared, model) if parameter.requires_grad]
    clip_norm = config.optimizer.clip_norm

    @torch.no_grad()
    def reset() -> None:
        torch._foreach_copy_(trained, initial)
        optimizer.zero_grad()
        torch.manual_seed(config.training.seed)

    def step(backward: Backward, harmonize_features: Weighting | None = None) -> None:
        module.harmonize_features = harmonize_features
        sides = module(**batch)
        backward({side: torch.stack(list(losses.values())).sum() for side, losses in sides.items()})
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, clip_norm)
        optimizer.step()

    def harmonized(weighting: Weighting, period: int = 1) -> Callable[[], None]:
        return partial(step, Harmonizer(weighting, module.shared, model=model, period=period).backward)

    steps: dict[str, Callable[[], object]] = {
        "plain sum": partial(step, _plain_backward),
        "GH, exact": harmonized(GH()),
        "GH++, exact": harmonized(GHPlusPlus()),
        f"GH++, exact, period {SWEEPS}": harmonized(GHPlusPlus(), period=SWEEPS),
        "GH++, fork at the features": partial(step, _plain_backward, GHPlusPlus()),
        "GH++ as published, three backward passes": partial(step, partial(published_backward, shared)),
    }
    with contextlib.suppress(ImportError):  # TorchJD is optional.
        steps["PCGrad of TorchJD, exact"] = harmonized(parse_weighting("pcgrad"))
    sizes = [sum(parameter.numel() for parameter in group) / 1e6 for group in (trained, shared)]
    description = [
        f"{network}; {sizes[0]:.2f} million parameters trained, {sizes[1]:.2f} million of them shared",
        f"{data}, float32",
    ]
    return Workload(model, steps, reset, description)


def _plain_backward(losses: Mapping[str, Tensor]) -> None:
    torch.stack(list(losses.values())).sum().backward()


def published_backward(shared: Sequence[Tensor], losses: Mapping[str, Tensor]) -> Report:
    """Backward passes of the published recipe of GH++, which the other ways are compared with.

    Two passes for the gradients of the losses over the shared parameters, each copied into one vector, and a third for
    the weighted sum of the whole losses.

    Args:
        shared: The shared parameters.
        losses: The scalar losses ``alignment`` and ``task``.

    Returns:
        What was measured.
    """
    ordered = [losses["alignment"], losses["task"]]
    gradients = []
    for loss in ordered:
        found = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True, materialize_grads=True)
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    gramian = torch.stack([a @ b for a in gradients for b in gradients]).reshape(2, 2)
    weights = GHPlusPlusOfficial()(gramian)
    (weights @ torch.stack(ordered)).backward()
    return Report(("alignment", "task"), gramian, weights)


def _peak_bytes_alone(build: Callable[[], Workload], variant: str) -> int:
    # On Linux a process that is spawned inherits the peak of this one; one that is forked by a server does not.
    context = multiprocessing.get_context("forkserver")
    # An optimizer and PCGrad import these when they are built, which would take each process seconds.
    slow = ["torch._dynamo", "torchjd.aggregation"]
    context.set_forkserver_preload([*slow, __name__, getattr(build, "func", build).__module__])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_run_and_read_peak, build, variant, torch.get_num_threads()).result()


def _run_and_read_peak(build: Callable[[], Workload], variant: str, threads: int) -> int:
    import resource  # Absent on Windows.

    torch.set_num_threads(threads)
    workload = build()
    for _ in range(SWEEPS):
        workload.run(variant)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _machine(device: torch.device) -> list[str]:
    if device.type == "cuda":
        return [f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}; elapsed time, allocated memory"]
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = named[0] if named else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return [f"CPU {name}, {threads} thread(s), torch {torch.__version__}; CPU time of the process, resident memory"]
