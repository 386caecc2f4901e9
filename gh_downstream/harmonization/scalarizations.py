"""Weightings that look at the losses where others look at the gradients: the scalarizations of TorchJD, for comparison.

TorchJD is an optional dependency: ``pip install gh_downstream[torchjd]``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gh_downstream.harmonization.checks import check_at_least, check_numbers
from gh_downstream.harmonization.torchjd import check_arguments, import_torchjd, torchjd_word

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer

# With the arguments that stand beside those of TorchJD's class, or that it has no default for.
SCALARIZATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "dwa": ("DWA", {"epoch": 100}),
    "famo": ("FAMO", {"lr": 0.025, "weight_decay": 1e-3}),
    "geometricmean": ("GeometricMean", {}),
    "imtll": ("IMTLL", {"lr": 0.025}),
    "rlw": ("Random", {}),
    "stch": ("STCH", {"mu": 0.1}),
    "uw": ("UW", {"lr": 0.025}),
}
_RANGES = {"epoch": "whole, >= 1", "lr": "> 0", "mu": "> 0", "temperature": "> 0", "weight_decay": ">= 0"}
# What one remembers between steps beside parameters, in private attributes of TorchJD's.
_STATE = {"dwa": ("_loss_sum", "_n_batches", "_previous_averages"), "famo": ("_prev_losses",)}


class Scalarization:
    r"""A scalarization of TorchJD, by name, as a weighting of this package.

    A scalarization makes one loss :math:`f` of the losses :math:`\ell_i`. Its gradient is that of the weights

    .. math:: \tau_i = \partial f / \partial \ell_i

    which are taken here, so that it can be measured, logged and compared as the other weightings are; the gradients of
    the tasks are not looked at. As published, the weights are those of the whole losses: that is ``scope="all"``.

    ``dwa`` weighs by how the mean of each loss fell from one ``epoch``, here of so many steps, to the next. ``famo``
    lowers the logarithms of all losses alike; as published it is told how they changed by one more forward pass of the
    same batch, here by the losses of the next step. ``geometricmean`` is that of the losses. ``imtll`` and ``uw``, of
    half the length, learn a scale of each loss, here by an Adam of their own with the learning rate ``lr``. ``rlw``
    draws weights at random. ``stch`` is the smooth maximum of the losses, nearer to it the smaller ``mu`` is.

    .. warning:: The loss of a discriminator behind a gradient reversal says how well the discriminator does, and not
        how well the features are aligned: what lowers all losses alike means another thing there.

    Reads the losses to the host, which synchronizes.

    Args:
        name: A key of :data:`SCALARIZATIONS`.
        max_weight: Largest absolute value of a weight, at least 1; no cap by default.
        **arguments: Numbers that TorchJD's class takes, such as ``weight_decay`` of FAMO, and those above.

    Attributes:
        takes_losses: Whether it is called with the losses.

    Raises:
        ValueError: An argument is none of it or out of its range.
        ImportError: TorchJD is not installed.
    """

    takes_losses = True

    def __init__(self, name: str, *, max_weight: float | None = None, **arguments: Any) -> None:
        check_at_least("max_weight", max_weight, 1)
        class_name, usual = SCALARIZATIONS[name]
        self._kind = getattr(import_torchjd("scalarization"), class_name)
        parameters = inspect.signature(self._kind).parameters
        numbers = [key for key in parameters if re.search(r"\bfloat\b", str(parameters[key].annotation))]
        check_arguments(name, arguments, [*dict.fromkeys([*numbers, *usual])])
        check_numbers(arguments, **{key: f"one, {_RANGES[key]}" for key in arguments})
        self.name, self.max_weight, self._given = name, max_weight, arguments
        self._arguments = usual | arguments
        self._own = {key: value for key, value in self._arguments.items() if key not in parameters}
        self._scalarizer: Scalarizer | None = None

    def __call__(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        """Return the weights of shape ``[m]`` for a Gramian of shape ``[m, m]`` and the losses by task.

        Raises:
            ValueError: A loss is out of the range in which the weights are defined.
        """
        if self.name in ("famo", "geometricmean"):
            for task, loss in losses.items():
                if loss <= 0:
                    raise ValueError(
                        f"{self.name} takes the logarithm of the losses, and loss {task!r} is {loss:g}: give it one "
                        "above 0, or take a weighting that looks at gradients"
                    )
        scalarizer: Any = self._built(len(losses))
        values = torch.tensor([*losses.values()], dtype=torch.float64, requires_grad=True)
        if self.name == "famo" and scalarizer._prev_losses is not None:
            scalarizer.update(values)
        with torch.enable_grad():
            inputs = [values, *scalarizer.parameters()]
            weights, *gradients = torch.autograd.grad(scalarizer(values), inputs, allow_unused=True)
        if not weights.isfinite().all():
            raise ValueError(f"{self.name} has no finite weights for the losses {dict(losses)}: take another weighting")
        if self._optimizer is not None and self.name != "famo":  # which steps by itself, at the update
            for parameter, gradient in zip(scalarizer.parameters(), gradients, strict=True):
                parameter.grad = gradient
            self._optimizer.step()
        if self.name == "dwa" and scalarizer._n_batches == self._own["epoch"]:
            scalarizer.step()
        return weights if self.max_weight is None else weights.clamp(-self.max_weight, self.max_weight)

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a restart."""
        if self._scalarizer is None:
            return {}
        return {
            "tasks": self._tasks,
            "parameters": self._scalarizer.state_dict(),
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            "others": {key: getattr(self._scalarizer, key) for key in _STATE.get(self.name, ())},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        scalarizer = self._built(state["tasks"])
        scalarizer.load_state_dict(state["parameters"])
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])
        for key, value in state["others"].items():
            setattr(scalarizer, key, value)

    def __repr__(self) -> str:
        """The word that :func:`~gh_downstream.harmonization.parse_weighting` reads."""
        return torchjd_word(self.name, self._given, self.max_weight)

    def _built(self, tasks: int) -> Scalarizer:
        """TorchJD's own for so many tasks, made at the first call, which tells their number."""
        if self._scalarizer is None:
            arguments = {key: value for key, value in self._arguments.items() if key not in self._own}
            if "shape" in inspect.signature(self._kind).parameters:
                arguments["shape"] = tasks
            if self.name == "stch":
                # TorchJD's own sum to one: a smooth maximum of the losses over their number.
                arguments["weights"] = torch.ones(tasks, dtype=torch.float64)
            scalarizer = self._kind(**arguments).double()
            parameters = [*scalarizer.parameters()]
            rates = {key: self._arguments[key] for key in ("lr", "weight_decay") if key in self._arguments}
            self._optimizer = torch.optim.Adam(parameters, **rates) if parameters else None
            if self.name == "famo":
                scalarizer._optimizer = self._optimizer  # It would make one like it at its first update.
            self._scalarizer, self._tasks = scalarizer, tasks
        return self._scalarizer
