"""What one harmonization measured and decided, and what a training has measured since its last entry in the log."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Report:
    """The Gramian and the weights of one step, with what follows from them.

    Everything stays on the device of the gradients: nothing is computed and no host synchronization happens before
    a property is read. :meth:`as_dict` reads all of it at once.

    Attributes:
        tasks: Names of the ``m`` tasks, in the order of the rows.
        gramian: Inner products of the tasks' gradients, of shape ``[m, m]``, float64.
        weights: The weights, of shape ``[m]``, float64.
    """

    tasks: tuple[str, ...]
    gramian: Tensor
    weights: Tensor

    @property
    def norms(self) -> Tensor:
        """Norms of the gradients, of shape ``[m]``."""
        return self.gramian.diagonal().clamp(min=0.0).sqrt()

    @property
    def cosines(self) -> Tensor:
        """Cosines in ``[-1, 1]`` between the gradients, of shape ``[m, m]``; NaN where a gradient vanishes."""
        norms = self.norms
        return (self.gramian / norms / norms[:, None]).clamp(-1.0, 1.0)

    @property
    def cosine(self) -> Tensor:
        """The smallest cosine between two tasks, of shape ``[]``: for two tasks, the cosine."""
        i, j = torch.triu_indices(len(self.tasks), len(self.tasks), offset=1, device=self.gramian.device)
        return self.cosines[i, j].amin() if len(self.tasks) > 1 else self.gramian.new_ones(())

    @property
    def angle(self) -> Tensor:
        """The largest angle between two tasks in degrees, in ``[0, 180]``, of shape ``[]``."""
        return self.cosine.acos().rad2deg()

    @property
    def conflict(self) -> Tensor:
        """Whether two gradients are at more than 90 degrees, boolean, of shape ``[]``."""
        return (self.gramian < 0).any()

    @property
    def opposed(self) -> Tensor:
        """Whether the update still points against some task's gradient, boolean, of shape ``[]``.

        Rounding is allowed for: a component of less than 1e-6 of the product of the norms does not count.
        """
        along = self.gramian @ self.weights
        length = (self.weights @ along).clamp(min=0.0).sqrt()
        return (along < -1e-6 * self.norms * length).any()

    @property
    def gain(self) -> Tensor:
        """Length of the update over the length of the plain sum, of shape ``[]``.

        At equal norms GH, exact GH++ and the plain sum differ in length alone: read every comparison of them with
        this number, or a larger learning rate will be taken for a better direction.
        """
        return (self.weights @ self.gramian @ self.weights / self.gramian.sum()).clamp(min=0.0).sqrt()

    def as_dict(self) -> dict[str, float]:
        """Read everything to the host at once (one synchronization).

        Returns:
            ``cosine``, ``angle``, ``gain``, ``conflict`` and ``opposed`` (0 or 1), ``norm/TASK`` and ``weight/TASK``
            for each task, and of more than two tasks ``cosine/TASK/TASK`` for each pair.
        """
        names = ("cosine", "angle", "gain", "conflict", "opposed")
        scalars = torch.stack([getattr(self, name).to(self.gramian) for name in names])
        pairs = [*combinations(range(len(self.tasks)), 2)] if len(self.tasks) > 2 else []
        keys = [*names, *(f"{kind}/{task}" for kind in ("norm", "weight") for task in self.tasks)]
        keys += [f"cosine/{self.tasks[i]}/{self.tasks[j]}" for i, j in pairs]
        of_pairs = [self.cosines[i, j][None] for i, j in pairs]
        return dict(zip(keys, torch.cat([scalars, self.norms, self.weights, *of_pairs]).tolist(), strict=True))


class Measurements:
    """What was measured since the last entry in the log; it stays on its device until it is read.

    Attributes:
        report: The last report.
        total: Number of reports since the beginning.
    """

    def __init__(self) -> None:
        self.total = 0
        self.report: Report | None = None
        self._conflicts: Tensor | int = 0
        self._count = 0

    def add(self, report: Report) -> None:
        """Take the report of a measurement."""
        self.total += 1
        self.report = report
        self._conflicts = self._conflicts + report.conflict
        self._count += 1

    def read(self) -> dict[str, float]:
        """Read to the host, which synchronizes, and begin anew.

        Returns:
            As soon as something was measured ``gh/cosine``, ``gh/angle`` (degrees), ``gh/gain``, ``gh/conflict`` and
            ``gh/opposed`` (0 or 1), ``gh/norm/TASK`` and ``gh/weight/TASK`` of the last measurement, and
            ``gh/conflict_rate`` in [0, 1] over those since the last call; of more than two tasks
            ``gh/cosine/TASK/TASK`` too.
        """
        metrics: dict[str, float] = {}
        if self.report is not None:
            metrics |= {f"gh/{key}": value for key, value in self.report.as_dict().items()}
        if self._count:
            metrics["gh/conflict_rate"] = float(self._conflicts) / self._count
        self._conflicts, self._count = 0, 0
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a restart."""
        report = None if self.report is None else (self.report.tasks, self.report.gramian, self.report.weights)
        return {"conflicts": int(self._conflicts), "measured": self._count, "report": report}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Restore what :meth:`state_dict` returned, the report onto a device."""
        self._conflicts, self._count = state["conflicts"], state["measured"]
        if state["report"] is not None:
            tasks, gramian, weights = state["report"]
            self.report = Report(tuple(tasks), gramian.to(device), weights.to(device))
