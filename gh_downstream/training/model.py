"""What the trainer knows of a model that it adapts."""

from __future__ import annotations

from torch import nn

from gh_downstream.harmonization import Measurements, Weighting


class AdaptedModel(nn.Module):
    """A model whose losses have a task and an alignment side.

    Attributes:
        harmonize_features: The weighting by which it forks its features, or None.
        measurements: What the fork measured (``fork(..., on_report=self.measurements.add)``); the trainer reads it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.harmonize_features: Weighting | None = None
        self.measurements = Measurements()
