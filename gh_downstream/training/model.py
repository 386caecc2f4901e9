"""What the trainer knows of a workload: its model, the updates that a step has, and hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gh_downstream.harmonization import Measurements, Weighting
from gh_downstream.harmonization.losses import divide_losses
from gh_downstream.harmonization.parameters import select_parameters


@dataclass(frozen=True)
class Phase:
    """One update of a step that has several, such as the three of maximum classifier discrepancy.

    A model whose ``phases`` lists them is called once for each, with ``phase=NAME`` beside the batch, and returns the
    losses of that phase.

    Args:
        name: Name of the phase; the same one may come several times in a step.
        trained: Names or wildcards of the parameters that are updated; the others get no gradient.
        harmonized: Whether its losses are harmonized. Those of other phases are summed.
    """

    name: str
    trained: Sequence[str]
    harmonized: bool = False


class AdaptedModel(nn.Module):
    """A model whose losses have a task and an alignment side.

    In training mode, called with a batch as keyword arguments, it returns
    ``{"task": {name: loss}, "alignment": {name: loss}}`` of scalars, no two of one name; ``alignment`` is empty or
    absent where nothing is aligned. It is a base class rather than a protocol so that a model says only what differs.

    Attributes:
        shared: Names or wildcards of the parameters that the sides share.
        phases: The updates of a step that has several, in their order.
        figures: Scalars by name that a line of metrics shows too.
        trade_offs_after: Whether the strengths of its losses (:meth:`inside`) count after the weighing.
        measured_tasks: ``harmonization.tasks`` where they do so in this update, None where not; the trainer's.
        trade_offs: What the weighed gradient of each task is multiplied by in this update.
        harmonize_features: The weighting that the model harmonizes its features by, with
            ``fork(..., on_report=self.measurements.add)``; None where it does not, or cannot.
        measurements: What that fork measured since the last line of metrics.
    """

    shared: Sequence[str] = ()
    phases: Sequence[Phase] = ()
    trade_offs_after = False

    def __init__(self) -> None:
        super().__init__()
        self.measured_tasks: Mapping[str, Sequence[str]] | None = None
        self.trade_offs: dict[str, float] = {}
        self.harmonize_features: Weighting | None = None
        self.measurements = Measurements()

    def train(self, mode: bool = True) -> AdaptedModel:
        """Set the mode, but leave modules of which no parameter is trained, frozen as a whole, in evaluation mode.

        Running statistics in them do not move then, and nothing is dropped.
        """
        super().train(mode)
        for module in self.modules() if mode else ():
            parameters = [*module.parameters()]
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    @property
    def figures(self) -> Mapping[str, Tensor]:
        """Nothing, unless a model has something to show."""
        return {}

    def inside(self, strengths: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Return what belongs into the graph of the strengths of the losses, by loss.

        A strength multiplies the gradient of a loss over the shared parameters: the ramp of a gradient reversal, or a
        trade-off. As a part of what is measured, it is undone by a weighting that looks at directions alone. Where it
        counts after the weighing, the largest one in each task becomes the trade-off of the task, and the losses keep
        what they have in proportion to it: with weights of 1 the update is the same.

        Args:
            strengths: A number of at least 0, or such a scalar, for every loss of the update; nested as the model
                returns the losses.
        """
        inside = {name: value for losses in strengths.values() for name, value in losses.items()}
        self.trade_offs = {}
        if self.measured_tasks is None:
            return inside
        by_side = {side: list(losses) for side, losses in strengths.items()}
        divided = divide_losses(inside, self.measured_tasks) if self.measured_tasks else by_side
        for task, names in divided.items():
            self.trade_offs[task] = strongest = float(max(inside[name] for name in names))
            inside |= {name: float(inside[name]) / strongest if strongest else 1.0 for name in names}
        return inside


class Callback:
    """What a workload adds to the trainer: hooks, called in every process; here they do nothing."""

    def on_batch(self, batch: dict[str, Any], average: nn.Module | None) -> None:
        """Look at a batch, on the device, before the model gets it; take out of it what the model is not given.

        Args:
            batch: What the model will be called with.
            average: The average of ``training.ema`` after the step before, in evaluation mode; None without.
        """

    def on_step_end(self, due: bool) -> None:
        """A step was taken.

        Args:
            due: Whether something is logged, evaluated or saved now: the time for what the processes have to agree on.
        """

    def metrics(self) -> Mapping[str, float]:
        """Return what a line of metrics shows too."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a restart."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""


@contextmanager
def trained_alone(model: nn.Module, phase: Phase | None) -> Iterator[Sequence[Tensor]]:
    """Let only the parameters of a phase require a gradient within the context; None leaves all as they are.

    Yields:
        The parameters that require a gradient.
    """
    before = [parameter for parameter in model.parameters() if parameter.requires_grad]
    chosen = {id(parameter) for parameter in (before if phase is None else select_parameters(phase.trained, model))}
    others = [parameter for parameter in before if id(parameter) not in chosen]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield [parameter for parameter in before if id(parameter) in chosen]
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
