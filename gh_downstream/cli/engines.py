"""Which engine trains a configuration: torchvision, retrieval or classification in our own loop, or Detectron2."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gh_downstream.training import ExperimentConfig


class EngineName(str, Enum):
    """The engines by name."""

    TORCHVISION = "torchvision"
    RETRIEVAL = "retrieval"
    CLASSIFICATION = "classification"
    DETECTRON2 = "detectron2"


@dataclass(frozen=True)
class Engine:
    """An engine of our own loop; its package is imported when it is asked for.

    Attributes:
        package: Package with the modules ``config`` and ``engine``.
        schema_name: Class of the configuration.
        own_keys: Keys that no other engine has; one of them stands in every configuration of this one.
    """

    package: str
    schema_name: str
    own_keys: frozenset[str]

    @property
    def schema(self) -> type[ExperimentConfig]:
        """The class of the configuration."""
        return getattr(importlib.import_module(f"{self.package}.config"), self.schema_name)

    @property
    def module(self) -> ModuleType:
        """The module with ``build_trainer``, ``evaluate_checkpoint`` and ``show_results``."""
        return importlib.import_module(f"{self.package}.engine")


ENGINES = {
    EngineName.TORCHVISION: Engine(
        "gh_downstream.detection.torchvision", "DetectionConfig", frozenset({"detector", "flip"})
    ),
    EngineName.RETRIEVAL: Engine("gh_downstream.retrieval", "RetrievalConfig", frozenset({"encoder", "task", "init"})),
    EngineName.CLASSIFICATION: Engine(
        "gh_downstream.classification", "ClassificationConfig", frozenset({"backbone", "transform", "bottleneck"})
    ),
}
"""Those of our own loop."""


def engine_of(path: Path) -> EngineName:
    """Return the engine that a configuration is for, by the keys in it and in the files that it is based on.

    Args:
        path: The YAML file. Detectron2's keys are in capitals.

    Raises:
        ValueError: The file cannot be read, or its keys are those of no engine, or of several.
    """
    from gh_downstream.training.config import read_layers

    keys = {str(key) for _, layer in read_layers(path) for key in layer}
    if any(key.isupper() for key in keys):
        return EngineName.DETECTRON2
    found = [name for name, engine in ENGINES.items() if engine.own_keys & keys]
    if len(found) != 1:
        raise ValueError(f"{path}: its keys do not say which engine it is for; give --engine")
    return found[0]
