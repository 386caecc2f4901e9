"""What a workload adds to the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Callback:
    """Hooks of the :class:`~gh_downstream.training.Trainer`, called in every process; here they do nothing."""

    def on_batch(self, batch: dict[str, Any]) -> None:
        """Look at a batch before the model gets it; take out of it what the model is not given."""

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
