"""Two convex losses in the plane, on which everything is known: what each weighting does to them.

They verify the mechanism itself, without networks, data or noise: where the gradients stand at a chosen angle with a
chosen ratio of their norms, which updates oppose a task, and where gradient descent ends.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gh_downstream.harmonization import Weighting


@dataclass(frozen=True)
class TwoQuadratics:
    r"""The losses :math:`f_i(x) = \frac{k_i}{2} |x - m_i|^2` of a point in the plane, in float64.

    Their Pareto front, where neither can fall without the other rising, is the segment between the minima.

    Attributes:
        minima: The minima :math:`m_i`, of shape ``[2, 2]``.
        curvatures: :math:`k_i > 0`, of shape ``[2]``.
        start: Where gradient descent starts, of shape ``[2]``.
    """

    minima: Tensor
    curvatures: Tensor
    start: Tensor

    @classmethod
    def at(cls, angle: float, norm_ratio: float) -> TwoQuadratics:
        """Return the losses whose gradients at the start stand at an angle in degrees, the first ``norm_ratio`` long.

        Both minima are at a distance of 1 from the start, which is the origin; the second gradient has norm 1.

        Raises:
            ValueError: The angle is not in ``(0, 180)``, or the ratio not positive.
        """
        if not 0 < angle < 180:
            raise ValueError(f"angle must lie between 0 and 180 degrees, got {angle}")
        if not norm_ratio > 0:
            raise ValueError(f"norm_ratio must be positive, got {norm_ratio}")
        half = math.radians(angle / 2)
        minima = torch.tensor([[-math.sin(half), math.cos(half)], [math.sin(half), math.cos(half)]]).double()
        return cls(minima, torch.tensor([norm_ratio, 1.0]).double(), torch.zeros(2).double())

    def losses(self, points: Tensor) -> Tensor:
        """Return both losses, of shape ``[..., 2]``, at points of shape ``[..., 2]``."""
        return self.curvatures / 2 * (points[..., None, :] - self.minima).square().sum(-1)

    def gradients(self, point: Tensor) -> Tensor:
        """Return the gradients, of shape ``[2, 2]``, at a point of shape ``[2]``."""
        return self.curvatures[:, None] * (point - self.minima)

    def distance_to_front(self, points: Tensor) -> Tensor:
        """Return the distance of points of shape ``[..., 2]`` to the Pareto front, of shape ``[...]``."""
        first, along = self.minima[0], self.minima[1] - self.minima[0]
        share = ((points - first) @ along / (along @ along)).clamp(0.0, 1.0)
        return (points - first - share[..., None] * along).norm(dim=-1)


def descend(problem: TwoQuadratics, weighting: Weighting, steps: int, rate: float) -> Tensor:
    """Return the points from the start on, ``[steps + 1, 2]``; a step is the update of the weighting times the rate."""
    points = [problem.start]
    for _ in range(steps):
        gradients = problem.gradients(points[-1])
        points.append(points[-1] - rate * weighting(gradients @ gradients.T) @ gradients)
    return torch.stack(points)


def remaining_conflict(weighting: Weighting, angles: Sequence[float], norm_ratios: Sequence[float]) -> Tensor:
    """Return how far the updates of a weighting of two tasks stay from opposing one.

    Args:
        weighting: The weighting.
        angles: Angles between the gradients in degrees.
        norm_ratios: Norms of the first gradient over those of the second.

    Returns:
        The smaller cosine of the angles between the update and the two gradients, of shape
        ``[len(angles), len(norm_ratios)]``: negative where a task is opposed, 0 where the update vanishes.
    """
    found = []
    for angle, ratio in itertools.product(angles, norm_ratios):
        cosine = math.cos(math.radians(angle))
        gramian = torch.tensor([[ratio * ratio, cosine * ratio], [cosine * ratio, 1.0]], dtype=torch.float64)
        weights = weighting(gramian)
        along = gramian @ weights
        length = (weights @ along).clamp(min=0.0).sqrt()
        cosines = along / (gramian.diagonal().sqrt() * length)
        found.append(torch.where(cosines.isfinite(), cosines, 0.0).amin())
    return torch.stack(found).reshape(len(angles), len(norm_ratios))


def opposing_share(conflict: Tensor) -> float:
    """Return the share of the cells of :func:`remaining_conflict` in which a task is opposed, rounding aside."""
    return float((conflict < -1e-6).double().mean())
