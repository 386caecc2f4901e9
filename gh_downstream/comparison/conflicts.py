"""How the losses of a training conflict beyond the noise of batches, and what weightings make of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor

from gh_downstream.comparison.differences import LEVEL, Difference
from gh_downstream.harmonization import Probe, Weighting
from gh_downstream.harmonization.weightings import guarded
from gh_downstream.reporting import Spread

FEWEST = 4
"""Batches that a scatter is estimated from."""

ALL = "all layers"

Lines = Sequence[Mapping[str, float]]
"""Logged steps whose gradients were measured."""


@dataclass(frozen=True)
class Batches:
    """What was measured of batches.

    Attributes:
        tasks: Names of the ``m`` tasks.
        layers: Names of the ``L`` layers.
        gramians: Of each batch and layer, of shape ``[K, L, m, m]``, float64.
        factors: Trade-offs of each batch, of shape ``[K, m]``, which count after the weighing.

    Raises:
        ValueError: There are fewer than :data:`FEWEST`.
    """

    tasks: tuple[str, ...]
    layers: Sequence[str]
    gramians: Tensor
    factors: Tensor

    def __post_init__(self) -> None:
        if len(self.gramians) < FEWEST:
            raise ValueError(
                f"too few batches to tell conflict from noise: {len(self.gramians)} in which all losses have "
                f"gradients, and {FEWEST} are the least, better 32 (--batches)"
            )

    @classmethod
    def of_probe(cls, probe: Probe) -> Batches:
        """Those that a probe has measured, but for gradients that vanish or are not finite."""
        m = len(probe.tasks)
        gramians = torch.stack(probe.gramians) if probe.gramians else torch.empty(0, 1, m, m, dtype=torch.float64)
        factors = torch.tensor(probe.factors, dtype=torch.float64).reshape(-1, m)
        squares = gramians.sum(1).diagonal(dim1=1, dim2=2)
        kept = gramians.isfinite().flatten(1).all(1) & (squares > 0).all(1)
        return cls(probe.tasks, probe.layers, gramians[kept], factors[kept])

    @classmethod
    def of_log(cls, lines: Lines) -> Batches:
        """Those of logged steps, as one layer."""
        tasks = tasks_of(lines)
        norms = torch.tensor([[line[f"gh/norm/{task}"] for task in tasks] for line in lines], dtype=torch.float64)
        cosines = torch.eye(len(tasks), dtype=torch.float64).repeat(len(lines), 1, 1)
        for (i, j), key in _cosine_keys(tasks).items():
            cosines[:, i, j] = cosines[:, j, i] = torch.tensor([line[key] for line in lines], dtype=torch.float64)
        gramians = cosines * norms[:, None] * norms[:, :, None]
        return cls(tasks, [ALL], gramians[:, None], torch.ones_like(norms))

    @cached_property
    def total(self) -> Tensor:
        """Gramians over all layers, of shape ``[K, m, m]``."""
        return self.gramians.sum(1)

    @cached_property
    def norms(self) -> Tensor:
        """Norms of the gradients, of shape ``[K, m]``."""
        return self.total.diagonal(dim1=1, dim2=2).sqrt()

    @cached_property
    def conflicts(self) -> dict[tuple[str, str], Conflict]:
        """That of each two tasks, by their names, over all layers and, where there are several, in each."""
        layers = {ALL: self.total}
        if len(self.layers) > 1:
            layers |= zip(self.layers, self.gramians.unbind(1), strict=True)
        pairs = [*combinations(range(len(self.tasks)), 2)]
        found = {
            (f"{self.tasks[i]} – {self.tasks[j]}", layer): Conflict.of(gramians, self.norms, i, j)
            for layer, gramians in layers.items()
            for i, j in pairs
        }
        return {key: conflict for key, conflict in found.items() if len(conflict.values) > 1}

    @cached_property
    def shown(self) -> dict[tuple[str, str], str]:
        """What is shown of the mean of each: ``conflict``, ``agreement``, or ``not shown``.

        Those of all layers are corrected for their number, and those of single ones for theirs (Holm).
        """
        from statsmodels.stats.multitest import multipletests

        said: dict[tuple[str, str], str] = {}
        for whole in (True, False):
            found = {key: one for key, one in self.conflicts.items() if (key[1] == ALL) is whole}
            chances = [one.p_different() for one in found.values()]
            differ = multipletests(chances, LEVEL, "holm")[0] if len(chances) > 1 else [p < LEVEL for p in chances]
            for (key, one), differs in zip(found.items(), differ, strict=True):
                said[key] = ("conflict" if one.mean < 0 else "agreement") if differs else "not shown"
        return said


def measured_lines(lines: Lines) -> Lines:
    """Return the lines that hold the cosine of each two tasks."""
    found = [line for line in lines if "gh/cosine" in line]
    return [line for line in found if line.keys() >= {*_cosine_keys(tasks_of(found)).values()}]


def _cosine_keys(tasks: Sequence[str]) -> dict[tuple[int, int], str]:
    pairs = combinations(range(len(tasks)), 2)
    return {(i, j): "gh/cosine" if len(tasks) == 2 else f"gh/cosine/{tasks[i]}/{tasks[j]}" for i, j in pairs}


def tasks_of(lines: Lines) -> tuple[str, ...]:
    """Return the tasks of a training by its log."""
    return tuple(key.removeprefix("gh/norm/") for key in lines[-1] if key.startswith("gh/norm/"))


@dataclass(frozen=True)
class Conflict(Difference):
    """Cosines between two gradients, one for each batch; their mean is below zero where the losses conflict.

    Attributes:
        norms: The median ratio of the norms in words, such as ``1 to 20``.
        part: Mean part of the cosine over all layers.
    """

    norms: str
    part: float

    @classmethod
    def of(cls, gramians: Tensor, norms: Tensor, i: int, j: int) -> Conflict:
        """That of two tasks, from Gramians of shape ``[K, m, m]``; without batches where a gradient vanishes."""
        first, second = gramians[:, i, i].sqrt(), gramians[:, j, j].sqrt()
        cosines = gramians[:, i, j] / (first * second)
        part = (gramians[:, i, j] / (norms[:, i] * norms[:, j])).mean()
        ratio = float((first / second).nanmedian())
        norms_in_words = f"{ratio:.3g} to 1" if ratio >= 1 else f"1 to {1 / ratio if ratio else math.inf:.3g}"
        return cls(tuple(cosines[cosines.isfinite()].clamp(-1, 1).tolist()), norms_in_words, float(part))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the mean, as far as there are cosines."""
        return max(-1.0, self.mean - self.half), min(1.0, self.mean + self.half)

    @property
    def angles(self) -> Spread:
        """Angles in degrees."""
        return Spread.of(math.degrees(math.acos(value)) for value in self.values)

    @property
    def rate(self) -> float:
        """Share of the batches in conflict."""
        return sum(value < 0 for value in self.values) / len(self.values)

    @property
    def noise(self) -> float:
        """Share of the conflicts that noise may make: around a right angle it makes as many as acute angles."""
        return min(1.0, (1 - self.rate) / self.rate) if self.rate else 0.0


@dataclass(frozen=True)
class Updates:
    """What a weighting makes of batches, of shape ``[K]`` or ``[K, m]``.

    Attributes:
        turned: Angle between the update and the plain sum, in degrees.
        gain: Length of the update over that of the plain sum.
        along: Cosines of the update and the gradient of each task: how well it serves the task; 0 where it vanishes.
        weights: The weights.
    """

    turned: Tensor
    gain: Tensor
    along: Tensor
    weights: Tensor

    @classmethod
    def of(cls, weighting: Weighting, batches: Batches) -> Updates:
        """Those of a weighting; of one that remembers something, as of its first step."""
        weights = torch.stack([guarded(copy.deepcopy(weighting), gramian) for gramian in batches.total])
        plain, weighed = batches.factors, batches.factors * weights
        length, of_sum = (_product(w, batches.total, w).clamp(min=0).sqrt() for w in (weighed, plain))
        turned = (_product(weighed, batches.total, plain) / (length * of_sum)).clamp(-1, 1).acos().rad2deg()
        along = torch.einsum("kij,kj->ki", batches.total, weighed) / (batches.norms * length[:, None])
        return cls(turned, length / of_sum, along.nan_to_num(0), weights)

    @property
    def opposed(self) -> float:
        """Percentage of the batches whose update points against the gradient of a task."""
        return 100 * float((self.along < -1e-6).any(1).double().mean())

    @property
    def served(self) -> Tensor:
        """Mean cosine of the update and the gradient of each task, of shape ``[m]``."""
        return self.along.mean(0)

    def numbers(self) -> list[float]:
        """Return median and 90th percentile of the turn, median gain, percentage of opposed, largest weight, served."""
        turned = self.turned.nanquantile(torch.tensor([0.5, 0.9], dtype=torch.float64)).tolist()
        return [
            *turned,
            float(self.gain.nanmedian()),
            self.opposed,
            float(self.weights.abs().max()),
            *self.served.tolist(),
        ]


def _product(a: Tensor, gramians: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("ki,kij,kj->k", a, gramians, b)
