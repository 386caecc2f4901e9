"""How a Detectron2 training is harmonized: one table of settings for the config node, the hook and the function."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gh_downstream.harmonization import Weighting, build_weighting

# The keys of this package, of ALDI and MIC (_da_), of Adaptive Teacher (_D_), and of forks of DA Faster R-CNN (_d).
ALIGNMENT_LOSSES = r"loss_(image|instance|local|global)_domain|loss_consistency|_da_|_D_|_(d|da)$"


@dataclass(frozen=True, kw_only=True)
class HarmonizationSettings:
    """Settings of a harmonized training.

    Each attribute is an argument of :class:`GradientHarmonizationHook` and :func:`install_gradient_harmonization`, and
    in capitals a key of ``cfg.GH`` (``lam`` is ``GH.LAMBDA``).

    Attributes:
        method: ``none`` leaves the trainer as it is. ``sum`` takes the plain step, bit for bit, and measures the
            conflict at the steps that are logged. ``gh``, ``gh++``, ``gh++official``, or a weighting of TorchJD
            (``pcgrad``, ``upgrad``, …). ``none`` in a config that does not say.
        lam: Lambda of GH++ in [0, 1], or ``adaptive``; null is 0.5. (A Detectron2 config does not let a later layer
            replace a number by a word or back: there, set ``GH.LAMBDA None`` between the two.)
        guard: Move lambda of the exact GH++ to where no task is opposed.
        max_weight: Largest absolute value of a weight, at least 1; null for no cap.
        measure: ``parameters`` measures the gradients of the shared parameters, as the paper does. ``features`` leaves
            the trainer's step as it is and logs what a model of this package does itself, in one backward pass, at the
            features that its backbone hands to the heads (:func:`~gh_downstream.fork`, a different and cheaper
            algorithm). From a config the model is built for that; otherwise give it ``harmonize_features``, whose
            weighting is the one that counts. ``sum`` is the plain step to rounding then, ``scope``, ``shared``,
            ``tasks``, ``step``, ``period``, ``warmup_iters`` and ``synchronize`` have no meaning, and the losses of the
            tasks are not logged a second time.
        scope: ``shared`` weighs the gradients of the shared parameters and leaves those of all others alone; ``all``
            weighs the whole losses, as the published recipe does.
        shared: Names of modules or parameters of the model, or wildcards over the latter: what the tasks share. Empty
            for what the model's attribute ``shared`` names (the models of this package have it), or else ``backbone``.
        tasks: For each task the regular expressions that its losses match (``re.search``, so a part of the key is
            enough). The task without patterns takes all other losses. The first task is the paper's first, the
            alignment. Further tasks may be added under names of their own.
        step: ``two_backward`` runs backward once for each task and combines the gradients in place: least work on one
            process. It averages the gradients over processes itself, beside ``DistributedDataParallel`` and its
            communication hooks. ``weighted_loss`` measures with ``torch.autograd.grad`` and then runs one ordinary
            backward pass of the weighted sum, through DDP as it is configured; it weighs whole losses, so it needs
            ``scope`` ``all``.
        period: Measure at every ``period``-th step and hold the weights between.
        warmup_iters: Iterations with the plain step before harmonization begins. It never begins before the burn-in of
            a model of this package (``DA.BURN_IN_ITERS``) is over, until when there is nothing to harmonize.
        log_period: Iterations between two ``gh/*`` entries in the event storage, which are read from the device then;
            a divisor of the writers' period (20 by default) keeps them on the other metrics' lines of metrics.json.
        synchronize: In several processes, ``gradients`` averages the gradient of each task before it is measured, which
            is exact; ``gramian`` averages the measurements instead, which moves fewer bytes.

    Raises:
        ValueError: A setting is unknown or out of its range; the message lists what there is.
    """

    method: str
    lam: float | Literal["adaptive"] | None = None
    guard: bool = False
    max_weight: float | None = None
    measure: Literal["parameters", "features"] = "parameters"
    scope: Literal["shared", "all"] = "shared"
    shared: Sequence[str] = ()
    tasks: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"alignment": (ALIGNMENT_LOSSES,), "task": ()})
    step: Literal["two_backward", "weighted_loss"] = "two_backward"
    period: int = 1
    warmup_iters: int = 0
    log_period: int = 20
    synchronize: Literal["gradients", "gramian"] = "gradients"

    def __post_init__(self) -> None:
        if self.method != "none":
            self.weighting()
        _one_of("measure", self.measure, ("parameters", "features"))
        _one_of("scope", self.scope, ("shared", "all"))
        _one_of("step", self.step, ("two_backward", "weighted_loss"))
        _one_of("synchronize", self.synchronize, ("gradients", "gramian"))
        for name, least in {"period": 1, "warmup_iters": 0, "log_period": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"GH: {name} must be at least {least}, got {getattr(self, name)}")
        if self.step == "weighted_loss" and self.scope == "shared":
            raise ValueError(
                "GH: step weighted_loss weighs whole losses, and with them the gradients of the private parameters: "
                "set scope all to accept that, or take step two_backward, which can leave them alone"
            )
        self._check_tasks()
        if self.measure == "features":
            self._check_features()

    def weighting(self) -> Weighting:
        """A new weighting of these settings."""
        try:
            return build_weighting(self.method, 0.5 if self.lam is None else self.lam, self.guard, self.max_weight)
        except ValueError as error:
            raise ValueError(f"GH: {error}; method none harmonizes nothing") from None

    def _check_tasks(self) -> None:
        if len(self.tasks) < 2:
            raise ValueError(f"GH: tasks takes two or more tasks, got {list(self.tasks)}")
        rest = [task for task, patterns in self.tasks.items() if not patterns]
        if len(rest) > 1:
            raise ValueError(f"GH: only one task can take all other losses, but {rest} have no patterns")
        for task, patterns in self.tasks.items():
            if isinstance(patterns, str):
                raise ValueError(f"GH: tasks.{task} takes a list of patterns, got {patterns!r}")
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(
                        f"GH: pattern {pattern!r} of task {task} is no regular expression: {error}"
                    ) from None

    def _check_features(self) -> None:
        defaults = HarmonizationSettings(method="none")
        changed = [
            name
            for name in ("scope", "shared", "step", "period", "warmup_iters", "synchronize")
            if getattr(self, name) != getattr(defaults, name) and getattr(self, name) != []
        ]
        if _patterns(self.tasks) != _patterns(defaults.tasks):
            changed.append("tasks")
        if changed:
            raise ValueError(
                f"GH: measure features harmonizes inside the model, where {', '.join(changed)} cannot be set: leave it "
                "at its default, or set measure parameters"
            )


def _patterns(tasks: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {task: list(patterns) for task, patterns in tasks.items()}


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"GH: {name} is one of {', '.join(choices)}, got {value!r}")
