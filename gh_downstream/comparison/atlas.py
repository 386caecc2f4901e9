"""An atlas of weightings for two tasks: where each one's update points and how long it is, by angle and norm ratio."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gh_downstream.harmonization import Weighting

ANGLES = [float(angle) for angle in range(10, 180, 10)] + [175.0]
"""Angles between the gradients in degrees."""

RATIOS = (0.1, 0.25, 1.0, 4.0, 10.0)
"""Norms of the first gradient over those of the second."""

SAME, UP_TO = 1.0, 150.0
"""Degrees by which updates of the same direction may differ, at angles of up to so many: beyond, what a solver adds to
the Gramian shows."""


@dataclass(frozen=True)
class Charted:
    """The updates of a weighting, over :data:`ANGLES` and :data:`RATIOS`.

    Attributes:
        direction: Their angle to the second gradient in degrees, positive towards the first, in ``(-180, 180]``; not a
            number where the update vanishes.
        gain: Their length over that of the plain sum.
        opposes: Whether they point against one of the gradients.
    """

    direction: Tensor
    gain: Tensor
    opposes: Tensor

    def turned_from(self, other: Charted) -> Tensor:
        """Angle between the updates of two weightings, in degrees."""
        turn = (self.direction - other.direction).abs()
        return torch.minimum(turn, 360 - turn)


def chart(weighting: Weighting) -> Charted:
    """Chart a weighting of two tasks; one that remembers something as it is at its first step."""
    found = []
    for angle in ANGLES:
        for ratio in RATIOS:
            turn = math.radians(angle)
            first = [ratio * math.cos(turn), ratio * math.sin(turn)]
            gradients = torch.tensor([first, [1.0, 0.0]], dtype=torch.float64)
            gramian = gradients @ gradients.T
            update = copy.deepcopy(weighting)(gramian) @ gradients
            length = update.norm()
            # Two opposite gradients of one length have no direction left, but for rounding.
            vanishes = length < 1e-6 * gradients.norm(dim=1).max()
            direction = torch.atan2(update[1], update[0]).rad2deg() if not vanishes else torch.tensor(math.nan).double()
            opposed = (gradients @ update < -1e-6 * gradients.norm(dim=1) * length).any()
            found.append(torch.stack([direction, length / gradients.sum(0).norm(), opposed.double()]))
    direction, gain, opposes = torch.stack(found).reshape(len(ANGLES), len(RATIOS), 3).unbind(-1)
    return Charted(direction, gain, opposes.bool())


def families(charts: Mapping[str, Charted]) -> list[list[str]]:
    """Group the weightings whose updates have the same direction, in the order given; see :data:`SAME`."""
    near = torch.tensor(ANGLES) <= UP_TO
    found: list[list[str]] = []
    for name, charted in charts.items():
        for family in found:
            if not (charted.turned_from(charts[family[0]])[near] > SAME).any():
                family.append(name)
                break
        else:
            found.append([name])
    return found
