"""The length of the update: weights of any weighting, rescaled so that updates of different methods can be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gh_downstream.harmonization.torchjd import torchjd_weighting
from gh_downstream.harmonization.weightings import Weighting, guarded

LENGTHS = ("own", "tasks", "sum")
"""``own``: the weights as the method gives them; ``tasks`` and ``sum`` as in :class:`Rescaled`."""

_AVERAGES = ("alignedmtl", "cagrad", "dualproj", "imtlg", "mean", "mgda", "upgrad")
"""TorchJD's weightings that change the mean of the gradients where others change their sum."""


class Rescaled:
    r"""The direction of a weighting with another length of the update.

    ``tasks`` multiplies the weights by the number of tasks :math:`m`: for the methods that are defined as changes of
    the mean of the gradients, such as MGDA, UPGrad or CAGrad, so that their steps compare with those of the sum. UPGrad
    of two tasks is GH then.

    ``sum`` gives every update the length of the plain sum,

    .. math:: \tau \leftarrow \tau \, \frac{|\sum_i g_i|}{|\sum_i \tau_i g_i|}

    so that the gain is 1 and a longer step cannot be taken for a better direction. An update that vanishes (to
    rounding) has no direction and stays as it is.

    Weights stay one where the Gramian is not finite. Nothing here synchronizes with the host. A state of the weighting
    is passed through.

    Args:
        weighting: Any weighting.
        length: ``tasks`` or ``sum``.
    """

    def __init__(self, weighting: Weighting, length: str) -> None:
        self.weighting = weighting
        self.length = length

    def __call__(self, gramian: Tensor) -> Tensor:
        """Return the weights of shape ``[m]`` for a Gramian of shape ``[m, m]``."""
        weights = guarded(self.weighting, gramian)
        if self.length == "tasks":
            return torch.where(gramian.isfinite().all(), len(gramian) * weights, weights)
        update = weights @ gramian @ weights
        # What the terms of the update could add up to: one far below it is rounding.
        most = (weights.abs() * gramian.diagonal().clamp(min=0.0).sqrt()).sum() ** 2
        factor = (gramian.sum().clamp(min=0.0) / update).sqrt()
        usable = factor.isfinite() & (update > len(gramian) * torch.finfo(gramian.dtype).eps * most)
        return torch.where(usable, factor * weights, weights)

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a restart: the state of the weighting."""
        return getattr(self.weighting, "state_dict", dict)()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.weighting.load_state_dict(state)  # type: ignore[attr-defined]  # only those with a state have one

    def __repr__(self) -> str:
        """The word that :func:`~gh_downstream.harmonization.parse_weighting` reads."""
        return f"{self.weighting!r}:length={self.length}"


def with_length(weighting: Weighting, length: str) -> Weighting:
    """Return a weighting whose update has the length that a configuration names.

    Args:
        weighting: As :func:`~gh_downstream.harmonization.parse_weighting` makes it.
        length: ``own``; ``tasks`` to multiply the weights of those of TorchJD's methods that change the mean of the
            gradients by the number of tasks; ``sum`` for the length of the plain sum.

    Raises:
        ValueError: The length is unknown.
    """
    if length not in LENGTHS:
        raise ValueError(f"length is one of {', '.join(LENGTHS)}, got {length!r}")
    of_average = isinstance(weighting, torchjd_weighting) and weighting.name in _AVERAGES
    return Rescaled(weighting, length) if length == "sum" or (length == "tasks" and of_average) else weighting
