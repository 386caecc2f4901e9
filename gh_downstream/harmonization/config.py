"""How a training is harmonized: the one table of settings, for YAML, Detectron2 and every plugin."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from torch import nn

from gh_downstream.harmonization.checks import check_needs_no_losses, check_numbers, check_one_of
from gh_downstream.harmonization.harmonizer import SCOPES, SYNCHRONIZE, Harmonizer
from gh_downstream.harmonization.losses import Losses, check_tasks, names_by_task
from gh_downstream.harmonization.parameters import select_parameters
from gh_downstream.harmonization.weightings import Weighting
from gh_downstream.harmonization.words import parse_weighting


@dataclass(kw_only=True)
class HarmonizationConfig:
    """Settings of a harmonized training.

    Each attribute is a key of the section ``harmonization`` of a YAML file, in capitals a key of Detectron2's node
    ``cfg.GH``, and an argument of the hooks that are put into a trainer.

    Attributes:
        weighting: ``none`` leaves the training as it is. ``sum`` is the plain sum, measured. ``gh``, ``gh++``,
            ``gh++:0.3``, ``gh++:adaptive``, ``gh++:guard``, ``gh++:official``, or one of TorchJD such as ``pcgrad``,
            ``cagrad:c=0.4`` or ``famo``; see :mod:`gh_downstream.harmonization.words`.
        max_weight: Largest absolute value of a weight, at least 1; null for no cap.
        measure: ``parameters`` measures the gradients of the shared parameters, as the paper does (exact, two backward
            passes). ``features`` leaves the step as it is, one backward pass, and has a model of this package harmonize
            at its features (:func:`~gh_downstream.fork`, a different and cheaper algorithm); the keys below have to
            keep their defaults then.
        scope: ``shared`` weighs the gradients of the shared parameters and leaves those of all others alone; ``all``
            weighs the whole losses, as the published recipe does.
        shared: Names of modules or parameters of the model, or wildcards over the latter: what the tasks share. Empty
            for what the model's attribute ``shared`` names (the models of this package have it), or else ``backbone``.
        tasks: For each task the names or wildcards of its losses, such as ``{alignment: [loss_mmd_*], task: []}``, the
            alignment first. An empty list takes the losses that no pattern fits. Each task has to reach a shared
            parameter. Empty for the tasks of the model, ``alignment`` and ``task``; of a trainer whose losses have
            names alone, for what these say
            (:data:`~gh_downstream.harmonization.losses.ALIGNMENT_LOSSES`).
        period: Measure at every ``period``-th step and hold the weights between.
        warmup_steps: Steps with the plain sum before harmonization begins.
        synchronize: In several processes, ``gradients`` averages the gradient of each task before it is measured, which
            is exact; ``gramian`` averages the measurements instead, which moves fewer bytes.

    Raises:
        ValueError: A setting is unknown or out of its range; the message lists what there is.
        ImportError: The weighting is one of TorchJD, which is not installed.
    """

    weighting: str = "none"
    max_weight: float | None = None
    measure: str = "parameters"
    scope: str = "shared"
    shared: list[str] = field(default_factory=list)
    tasks: dict[str, list[str]] = field(default_factory=dict)
    period: int = 1
    warmup_steps: int = 0
    synchronize: str = "gradients"
    kind: ClassVar[type[Harmonizer]] = Harmonizer

    def __post_init__(self) -> None:
        check_one_of("measure", self.measure, ("parameters", "features"))
        check_one_of("scope", self.scope, SCOPES)
        check_one_of("synchronize", self.synchronize, SYNCHRONIZE)
        check_numbers(self, period=">= 1", warmup_steps=">= 0", max_weight=">= 1")
        check_tasks(self.tasks)
        self.shared = list(self.shared)
        if self.weighting != "none":
            weighting = self.build_weighting()
            if self.measure == "features":
                check_needs_no_losses(weighting)
        if self.measure == "features":
            usual = HarmonizationConfig(weighting=self.weighting, max_weight=self.max_weight)
            names = [f.name for f in fields(self) if f.name != "measure"]
            changed = [name for name in names if getattr(self, name) != getattr(usual, name)]
            if changed:
                raise ValueError(
                    f"measure=features harmonizes inside the model, where {', '.join(changed)} cannot be set: leave it "
                    "at its default, or set measure=parameters"
                )

    @property
    def at_features(self) -> bool:
        """Whether the model harmonizes at its features itself."""
        return self.weighting != "none" and self.measure == "features"

    def build_weighting(self) -> Weighting:
        """Return a new weighting of these settings; not for ``none``."""
        return parse_weighting(self.weighting, self.max_weight)

    def build_harmonizer(self, model: nn.Module) -> Harmonizer:
        """Return a harmonizer of these settings for a model that is not wrapped; not for ``none``.

        Raises:
            ValueError: Nothing says what its tasks share, or the patterns of ``shared`` match none of its parameters.
        """
        return self.kind(
            self.build_weighting(),
            self.shared or _shared_by(model),
            model=model,
            tasks=list(self.tasks) or ("alignment", "task"),
            scope=self.scope,
            period=self.period,
            synchronize=self.synchronize,
        )

    def describe(self, losses: Losses, model: nn.Module) -> str:
        """Say in one line what is harmonized: the losses of each task, and the trained parameters that they share.

        Raises:
            ValueError: As of :func:`~gh_downstream.harmonization.losses.group_losses` and :meth:`build_harmonizer`.
        """
        tasks = "; ".join(f"{task}: {', '.join(names)}" for task, names in names_by_task(losses, self.tasks).items())
        if self.at_features:
            return f"GH: {self.weighting}; {tasks}; shared: the features of {type(model).__name__}"
        names = self.shared or _shared_by(model)
        weights = sum(parameter.numel() for parameter in select_parameters(names, model) if parameter.requires_grad)
        return f"GH: {self.weighting}; {tasks}; shared: {', '.join(names)}, {weights:,} parameters"


def _shared_by(model: nn.Module) -> list[str]:
    """What a model says that its tasks share; other models may have something else by that name."""
    names: Any = getattr(model, "shared", None)
    if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
        return list(names)
    if any(name == "backbone" for name, _ in model.named_children()):
        return ["backbone"]
    raise ValueError(
        f"shared names no parameters, and {type(model).__name__} has neither an attribute `shared` that does nor a "
        "`backbone`: say what the tasks share, such as shared=[encoder]"
    )
