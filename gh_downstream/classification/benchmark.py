"""What a step of each method costs with and without harmonization, on :mod:`gh_downstream.training.benchmark`."""

from __future__ import annotations

import copy
import dataclasses
import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory

from accelerate.utils import send_to_device
from torch import Tensor

from gh_downstream.classification.config import ClassificationConfig
from gh_downstream.classification.engine import build_trainer
from gh_downstream.classification.methods import Method
from gh_downstream.harmonization import GHPlusPlusOfficial, HarmonizationConfig, Harmonizer, Report
from gh_downstream.harmonization.parameters import select_parameters
from gh_downstream.reporting import Cell, Table
from gh_downstream.training import Trainer, build_optimizer, parameter_groups
from gh_downstream.training.benchmark import Costs, Workload, check_precision, measure_costs, published_backward

logger = logging.getLogger(__name__)

PLAIN, PUBLISHED = "plain sum", "GH++ as published, three backward passes"
_SETTINGS = {
    PLAIN: HarmonizationConfig(),
    "GH, exact": HarmonizationConfig(weighting="gh"),
    "GH++, exact": HarmonizationConfig(weighting="gh++"),
    PUBLISHED: HarmonizationConfig(weighting="gh++:official", scope="all"),
}
VARIANTS = tuple(_SETTINGS)
"""The ways to make a step, first the one that the others are compared with."""


@dataclass(frozen=True)
class MethodCosts:
    """What the steps of one method cost.

    Attributes:
        method: The method.
        trained: Number of parameters that are trained.
        shared: Number of those over which it harmonizes, 0 for source-only.
        flops: Floating-point operations of a step by variant, see
            :meth:`~gh_downstream.training.benchmark.Workload.flops`.
        costs: Time and memory by variant.
    """

    method: str
    trained: int
    shared: int
    flops: Mapping[str, int]
    costs: Costs


def training_steps(config: ClassificationConfig, variants: Sequence[str] = VARIANTS) -> Workload:
    """Build the steps of a configuration as its trainer makes them, all phases of a step together.

    They are at half of the training, where the gradient reversal has risen. The weights are those after one step from
    the initial ones. ``training.init_from`` and ``validation`` are not read, ``harmonization`` is replaced.

    Args:
        config: A training.
        variants: Some of :data:`VARIANTS`, the plain sum first. Source-only has that one alone.

    Raises:
        ValueError: The configuration asks for another precision, or does not fit its data.
        FileNotFoundError: The data or the weights that it names are not there.
    """
    check_precision(config)
    steps = config.training.steps
    quiet = dataclasses.replace(
        config.training,
        log_every=steps,
        checkpoint_every=steps,
        evaluate_every=None,
        best_metric=None,
        init_from=None,
        wandb=None,
    )
    with TemporaryDirectory() as output:  # nothing to resume from
        config = dataclasses.replace(config, output=output, validation={}, training=quiet)
        try:
            plain = build_trainer(dataclasses.replace(config, harmonization=_SETTINGS[PLAIN]))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}; a step is measured on the data and weights of its configuration, nothing stands in for them"
            ) from None
        model = plain.module
        trainers = {PLAIN: plain}
        for variant in variants[1:] if model.needs_target else ():
            groups = parameter_groups(model, config.optimizer, config.learning_rates)
            settings = dataclasses.replace(config, harmonization=_SETTINGS[variant])
            trainers[variant] = Trainer(settings, model, build_optimizer(config.optimizer, groups), plain.batches)
    if PUBLISHED in trainers:
        trainers[PUBLISHED].harmonizer = _Published(GHPlusPlusOfficial(), model.shared, model=model, scope="all")
    model.train()
    start = steps // 2
    batch = send_to_device(plain.batches(start, 0, 1), plain.accelerator.device)

    def step(trainer: Trainer) -> None:
        trainer.train_step(dict(batch))

    plain.step = start
    step(plain)
    initial = copy.deepcopy(model.state_dict())

    def reset() -> None:
        model.load_state_dict(initial)
        for trainer in trainers.values():
            trainer.step = start

    images = {name: batch[f"{name}_images"] for name in ("source", "target") if f"{name}_images" in batch}
    counts = " and ".join(f"{len(tensor)} {name}" for name, tensor in images.items())
    size = " x ".join(map(str, images["source"].shape[1:]))
    description = [f"{config.method}: backbone {config.backbone}, {counts} images of {size}, float32"]
    return Workload(model, {name: partial(step, trainer) for name, trainer in trainers.items()}, reset, description)


def measure_method(config: ClassificationConfig, rounds: int, variants: Sequence[str] = VARIANTS) -> MethodCosts:
    """Measure the steps of a configuration.

    Args:
        config: As :func:`training_steps` takes it.
        rounds: Number of rounds, at least 2.
        variants: As :func:`training_steps` takes them.

    Raises:
        ValueError: As :func:`training_steps`, or there are fewer than two rounds.
        FileNotFoundError: As :func:`training_steps`.
    """
    logger.info("measuring %s", config.method)
    build = partial(training_steps, config, variants)
    costs = measure_costs(build, rounds)
    workload = build()
    model = workload.model
    assert isinstance(model, Method)
    shared = select_parameters(model.shared, model) if model.needs_target else []
    return MethodCosts(
        config.method,
        _count(model.parameters()),
        _count(shared),
        {variant: workload.flops(variant) for variant in workload.steps},
        costs,
    )


def costs_table(measured: Sequence[MethodCosts], command: str) -> Table:
    """Return what the methods cost as a table, with a row for each variant of each.

    Args:
        measured: The methods.
        command: What was called to measure them.
    """
    rows: list[list[Cell]] = []
    for method in measured:
        plain = next(iter(method.flops.values()))
        for variant, flops in method.flops.items():
            lower, median, upper = method.costs.ratios(variant)
            seconds = statistics.median(method.costs.seconds[variant])
            peak = round(method.costs.peak_bytes[variant] / 2**20)
            sizes = [method.trained, method.shared]
            rows.append(
                [method.method, variant, *sizes, flops / 1e9, flops / plain, peak, seconds, median, lower, upper]
            )
    lines = [line for method in measured for line in method.costs.header]
    return Table(
        "Cost of one training step of each method",
        [
            *("method", "step", "parameters", "shared", "GFLOP", "ratio of FLOPs", "peak MiB"),
            *("seconds", "ratio", "lower quartile", "upper quartile"),
        ],
        rows,
        [*dict.fromkeys(lines), f"command: {command}"],
        [
            "a step has all phases of its method; ratios are to the plain sum of the same method, that of the seconds "
            "in the same round: median and quartiles over the rounds",
            "FLOPs: matrix products, convolutions and attention, forward and backward; nothing that works element by "
            "element, neither the dot products of the Gramian nor the update of the weights",
            "peak MiB: on CPU resident memory of the process, with Python and torch",
        ],
        digits=3,
    )


class _Published(Harmonizer):
    """The published recipe, which runs backward three times."""

    def backward(self, losses: Mapping[str, Tensor]) -> Report:
        return published_backward([parameter for parameter in self.shared if parameter.requires_grad], losses)


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
