"""The length of the update: weights of any weighting, rescaled so that updates of different methods can be compared."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gh_downstream.harmonization.checks import check_one_of, check_weighting, takes_losses
from gh_downstream.harmonization.weightings import Weighting, guarded


class Rescaled:
    r"""The direction of a weighting with another length of the update.

    ``tasks`` multiplies the weights by the number of tasks :math:`m`: for the methods that are defined as changes of
    the mean of the gradients, such as MGDA, UPGrad or CAGrad, so that their steps compare with those of the sum. UPGrad
    of two tasks is GH then.

    ``sum`` gives every update the length of the plain sum,

    .. math:: \tau \leftarrow \tau \, \frac{|\sum_i g_i|}{|\sum_i \tau_i g_i|}

    so that the gain is 1 and a longer step cannot be taken for a better direction. An update that vanishes (to
    rounding) has no direction and stays as it is.

    Weights stay one where the Gramian is not finite. Nothing here synchronizes with the host. Its state is that of the
    weighting.

    Args:
        weighting: Any weighting.
        length: ``tasks`` or ``sum``.

    Raises:
        ValueError: ``length`` is another word.
        TypeError: ``weighting`` is none.
    """

    def __init__(self, weighting: Weighting, length: str) -> None:
        check_weighting(weighting)
        check_one_of("length", length, ("tasks", "sum"))
        self.weighting = weighting
        self.length = length
        self.takes_losses = takes_losses(weighting)
        self.state_dict = getattr(weighting, "state_dict", dict)
        self.load_state_dict = getattr(weighting, "load_state_dict", None)

    def __call__(self, gramian: Tensor, losses: Mapping[str, float] | None = None) -> Tensor:
        """Return the weights of shape ``[m]`` for a Gramian of shape ``[m, m]``."""
        weights = guarded(self.weighting, gramian, losses)
        if self.length == "tasks":
            return torch.where(gramian.isfinite().all(), len(gramian) * weights, weights)
        update = weights @ gramian @ weights
        # What the terms of the update could add up to: one far below it is rounding.
        most = (weights.abs() * gramian.diagonal().clamp(min=0.0).sqrt()).sum() ** 2
        factor = (gramian.sum().clamp(min=0.0) / update).sqrt()
        usable = factor.isfinite() & (update > len(gramian) * torch.finfo(gramian.dtype).eps * most)
        return torch.where(usable, factor * weights, weights)

    def __repr__(self) -> str:
        """The word that :func:`~gh_downstream.harmonization.parse_weighting` reads."""
        return f"{self.weighting!r}:length={self.length}"
