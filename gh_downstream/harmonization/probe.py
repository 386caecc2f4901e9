"""What the gradients of single batches are, layer by layer, for a diagnosis of whether harmonization can help."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gh_downstream.harmonization.config import HarmonizationConfig
from gh_downstream.harmonization.gramian import gramian
from gh_downstream.harmonization.harmonizer import Harmonizer
from gh_downstream.harmonization.passes import Rows, Step
from gh_downstream.harmonization.report import Report

MOST_LAYERS = 16
"""Groups of parameters that are told apart at most."""


class Probe(Harmonizer):
    """A harmonizer that keeps the Gramian of every batch, layer by layer; in one process.

    ::

        probe = Probe("gh", shared=model.trunk)
        for batch in batches:  # some 32, at weights that stay as they are
            probe.weigh({"alignment": ..., "task": ...})  # touches no .grad
        print(*gh_downstream.comparison.diagnosis.diagnose(probe).verdict())

    The layers are groups of the shared parameters by their names in the model, or else in the modules that are shared:
    by as many parts of the names as make :data:`MOST_LAYERS` groups at most.

    Attributes:
        layers: Names of the ``L`` layers; known after the first batch.
        gramians: For each batch a tensor of shape ``[L, m, m]``, float64, whose sum is the Gramian of the batch.
        factors: For each batch the trade-offs of the tasks.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layers: list[str] = []
        self.gramians: list[Tensor] = []
        self.factors: list[list[float]] = []
        self._places: list[list[int]] = []

    def _weighed(self, step: Step, rows: Rows, losses: Mapping[str, Tensor]) -> Report:
        if step.ranks.groups:
            raise ValueError("gradients are probed in one process: start it without torchrun or accelerate launch")
        if not self.layers:
            by_layer = self._by_layer(step.shared)
            self.layers, self._places = [*by_layer], [*by_layer.values()]
        gradients = rows if step.buckets is None else [step.buckets.unpacked(row) for row in rows]
        parts = [gramian([[row[place] for place in places] for row in gradients]) for places in self._places]
        self.gramians.append(torch.stack([part.cpu() for part in parts]))
        self.factors.append(step.factors)
        return super()._weighed(step, rows, losses)

    def _by_layer(self, shared: list[Tensor]) -> dict[str, list[int]]:
        """The places of the shared parameters in each layer."""
        modules = [item for item in self._selection.given if isinstance(item, nn.Module)]
        inside = modules[0] if len(modules) == 1 else nn.ModuleList(modules)
        root = inside if self.model is None else self.model
        owners = {id(parameter): name.split(".")[:-1] for name, parameter in root.named_parameters()}
        found: dict[str, list[int]] = {}
        for depth in range(1, 1 + max(map(len, owners.values()), default=1)):
            groups = defaultdict(list)
            for place, parameter in enumerate(shared):
                groups[".".join(owners.get(id(parameter), [])[:depth]) or "others"].append(place)
            if found and len(groups) > MOST_LAYERS:
                break
            found = groups
        return found


class ProbeConfig(HarmonizationConfig):
    """Settings of a training whose gradients are probed; by GH, so that trade-offs count after the weighing."""

    kind = Probe

    @classmethod
    def of(cls, settings: HarmonizationConfig) -> "ProbeConfig":
        """Return them for the settings of a training; a ``ValueError`` where it measures at the features."""
        if settings.measure == "features":
            raise ValueError("measure=features: only the gradients of parameters can be probed")
        return cls(**vars(settings) | {"weighting": "gh", "warmup_steps": 0, "period": 1})
