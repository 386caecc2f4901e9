"""Both ways between this package and TorchJD: its Gramian weightings here, ours there.

TorchJD is an optional dependency: ``pip install gh_downstream[torchjd]``.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gh_downstream.harmonization.checks import check_at_least, check_needs_no_losses, check_numbers, check_weighting
from gh_downstream.harmonization.weightings import guarded

if TYPE_CHECKING:
    from torchjd.aggregation import Weighting as TorchJDWeighting

# The weightings that need the Gramian alone, with the arguments that their papers use where TorchJD has no default.
TORCHJD: dict[str, tuple[str, dict[str, Any]]] = {
    "alignedmtl": ("AlignedMTLWeighting", {}),
    "cagrad": ("CAGradWeighting", {"c": 0.5}),
    "dualproj": ("DualProjWeighting", {}),
    "fairgrad": ("FairGradWeighting", {"alpha": 1.0}),
    "gradvac": ("GradVacWeighting", {}),
    "imtlg": ("IMTLGWeighting", {}),
    "mean": ("MeanWeighting", {}),
    "mgda": ("MGDAWeighting", {}),
    "pcd": ("PCDWeighting", {"eps": 0.0}),
    "pcgrad": ("PCGradWeighting", {}),
    "upgrad": ("UPGradWeighting", {}),
}
# What a weighting remembers between steps. TorchJD keeps it in private attributes and offers no state of its own.
_STATE = {"gradvac": ("_phi_t", "_state_key"), "pcd": ("_sq_norm_ema", "_n_steps", "_state_key")}


class torchjd_weighting:  # noqa: N801  # reads as a function, and is one with a state to save
    """A weighting of TorchJD, by name, as a weighting of this package.

    The Gramian is divided by its mean diagonal entry first: several of TorchJD's weightings compare it with a fixed
    epsilon and would silently return the mean of the gradients when all of them are small. PCD, which averages norms
    over the steps, gets it as it is, no epsilon, and the last task, here the one with labels, as the primary objective.

    Note that the weights of MGDA, UPGrad, AlignedMTL, DualProj and others sum to about one, those of GH and PCGrad to
    about the number of tasks.

    Args:
        name: A key of :data:`TORCHJD`, such as ``"pcgrad"`` or ``"upgrad"``.
        max_weight: Largest absolute value of a weight, at least 1; no cap by default.
        **arguments: Those of TorchJD's class, such as ``c=0.4`` of CAGrad.

    Raises:
        ValueError: An argument is none of it or out of its range.
        ImportError: TorchJD, or what this weighting needs beside it, is not installed.
    """

    def __init__(self, name: str, *, max_weight: float | None = None, **arguments: Any) -> None:
        check_at_least("max_weight", max_weight, 1)
        aggregation = import_torchjd("aggregation")
        class_name, usual = TORCHJD[name]
        self.name, self.max_weight, self._given = name, max_weight, arguments
        known = inspect.signature(getattr(aggregation, class_name)).parameters
        check_arguments(name, arguments, known)
        for key in arguments:
            if re.search(r"\b(int|float)\b", str(known[key].annotation)):
                check_numbers({key: arguments[key]}, **{key: ">= 0" if key in usual else ""})
        kind: Any = getattr(aggregation, class_name)
        eye = torch.eye(2, dtype=torch.float64)
        try:
            kind(**usual)(eye)
        except Exception:  # What is missing shows when it is called: as a NameError, or as an error of the solver's.
            raise ImportError(f"{name!r} needs more than TorchJD: pip install 'gh_downstream[torchjd]'") from None
        arguments = usual | arguments
        try:
            kind(**arguments)(eye)
        except AttributeError as error:
            raise ValueError(f"{', '.join(self._given)} of {name} is of a wrong type: {error}") from None
        self.weighting: TorchJDWeighting[Tensor] = kind(**arguments)  # A new one: it may remember its first call.

    def __call__(self, gramian: Tensor) -> Tensor:
        """Return the weights of shape ``[m]`` for a Gramian of shape ``[m, m]``."""
        if self.name == "pcd":
            weights = self.weighting(gramian.flip(0, 1)).flip(0)
        else:
            scale = gramian.diagonal().mean()
            weights = self.weighting(gramian / torch.where(scale > 0, scale, 1.0))
        return weights if self.max_weight is None else weights.clamp(-self.max_weight, self.max_weight)

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a restart; empty for all but GradVac."""
        return {key: getattr(self.weighting, key) for key in _STATE.get(self.name, ())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for key, value in state.items():
            setattr(self.weighting, key, value)

    def __repr__(self) -> str:
        """The word that :func:`~gh_downstream.harmonization.parse_weighting` reads."""
        return torchjd_word(self.name, self._given, self.max_weight)


def as_torchjd(weighting: Callable[[Tensor], Tensor]) -> TorchJDWeighting[Tensor]:
    """Wrap a weighting as a TorchJD ``Weighting``, for its ``GramianWeightedAggregator`` and ``autogram`` engine.

    Like ours, it turns a Gramian of shape ``[m, m]`` into weights of shape ``[m]``; it works in float64 inside and
    returns the Gramian's own type. The weights have no graph.

    Raises:
        ImportError: TorchJD is not installed.
        TypeError: ``weighting`` is none.
        ValueError: It looks at the losses.
    """
    check_weighting(weighting)
    check_needs_no_losses(weighting)
    aggregation = import_torchjd("aggregation")

    class Adapter(aggregation.Weighting):  # type: ignore[name-defined]
        def forward(self, gramian: Tensor, /) -> Tensor:
            return guarded(weighting, gramian.detach().double()).to(gramian.dtype)

    return Adapter()


def import_torchjd(part: str) -> Any:
    """Return a package of TorchJD's, or raise an ImportError with the command that installs it."""
    try:
        return importlib.import_module(f"torchjd.{part}")
    except ImportError as error:
        raise ImportError("this needs TorchJD: pip install 'gh_downstream[torchjd]'") from error


def check_arguments(name: str, given: Collection[str], known: Collection[str]) -> None:
    """Raise a ValueError where an argument is none of those that there are."""
    there = f"its arguments are {', '.join(known)}" if known else "it has none"
    for key in given:
        if key not in known:
            raise ValueError(f"{name} has no argument {key!r}; {there}")


def torchjd_word(name: str, given: Mapping[str, Any], max_weight: float | None) -> str:
    """Return the word of a weighting with arguments."""
    options = given if max_weight is None else {**given, "max_weight": max_weight}
    return ":".join([name, *(f"{key}={str(value).removesuffix('.0')}" for key, value in options.items())])
