"""What trains a configuration: an engine for each trainer, imported when it is used.

An engine says how a configuration is loaded and checked, how it is trained, where its metrics are, and which keys of a
configuration are what a comparison sets. Overrides are ``KEY=VALUE`` for every engine.
"""

from __future__ import annotations

import logging
import os
import pkgutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gh_downstream.files import write_atomically

logger = logging.getLogger(__name__)


class Engine(ABC):
    """What trains a configuration.

    Attributes:
        name: Its name.
        metric: Metric of an evaluation that is compared where none is named.
        keys: Keys of a configuration by what they are: ``output``, ``seed``, ``steps``, ``weighting``, ``scope``,
            ``weights`` (what a run starts from), and ``method`` where there are methods.
        weights: File in the output folder that other runs can start from.
    """

    name: str
    metric: str
    keys: Mapping[str, str]
    weights: str

    def override(self, what: str, value: object) -> str:
        """Return the override that sets one of :attr:`keys`.

        Raises:
            ValueError: The configurations of this engine have no such key.
        """
        if what not in self.keys:
            raise ValueError(f"the configurations of engine {self.name} have no {what}")
        return f"{self.keys[what]}={value}"

    @abstractmethod
    def load(self, path: Path, overrides: Sequence[str], metric: str | None = None) -> Any:
        """Return a configuration.

        Args:
            path: The file.
            overrides: ``KEY=VALUE``.
            metric: What its evaluation has to have, as far as this is known before the training.

        Raises:
            ValueError: It cannot be used, or will not have the metric.
            FileNotFoundError: There is no such file.
        """

    @abstractmethod
    def content(self, config: Any) -> dict[str, Any]:
        """Return a configuration as nested dictionaries, as ``config.yaml`` in its output folder holds it."""

    @abstractmethod
    def train(self, config: Any) -> dict[str, float]:
        """Train, or resume what was cut off; returns the metrics after the last step."""

    @abstractmethod
    def read_lines(self, folder: Path) -> list[dict[str, float]]:
        """Return what was logged: metrics by their names, and ``step``, the number of steps done by then."""


class LoopEngine(Engine):
    """A workload on the :class:`~gh_downstream.training.Trainer`.

    Args:
        name: Its name.
        metric: Metric that is compared where none is named.
        package: Package with ``config`` and ``engine`` of the workload.
        schema: Name of the class of the configuration.
        own_keys: Keys that no other engine has; one of them stands in every configuration of this one.
        methods: Whether a configuration names a ``method``.
    """

    weights = "last.pt"

    def __init__(
        self, name: str, metric: str, package: str, schema: str, own_keys: Sequence[str], methods: bool = False
    ) -> None:
        self.name, self.metric, self.package = name, metric, package
        self._schema, self.own_keys = schema, frozenset(own_keys)
        self.keys = {
            "output": "output",
            "seed": "training.seed",
            "steps": "training.steps",
            "weighting": "harmonization.weighting",
            "scope": "harmonization.scope",
            "weights": "training.init_from",
        } | ({"method": "method"} if methods else {})

    @property
    def schema(self) -> type[Any]:
        """The class of the configuration."""
        return pkgutil.resolve_name(f"{self.package}.config:{self._schema}")

    @property
    def module(self) -> Any:
        """The module with ``build_trainer``, ``evaluate_checkpoint`` and ``show_results``."""
        return pkgutil.resolve_name(f"{self.package}.engine")

    def load(self, path: Path, overrides: Sequence[str], metric: str | None = None) -> Any:
        from gh_downstream.training import load_config

        if metric is not None:
            load_config(self.schema, path, [*overrides, f"training.best_metric={metric}"])
        return load_config(self.schema, path, overrides)

    def content(self, config: Any) -> dict[str, Any]:
        from gh_downstream.training.config import config_dict

        return config_dict(config)

    def build_trainer(self, config: Any) -> Any:
        """Read the data of a configuration, and build the trainer."""
        return self.module.build_trainer(config)

    def train(self, config: Any) -> dict[str, float]:
        return self.build_trainer(config).run()

    def read_lines(self, folder: Path) -> list[dict[str, float]]:
        from gh_downstream.training import read_metrics

        return read_metrics(folder / "metrics.jsonl")


class Detectron2Engine(Engine):
    """Detectron2's trainer with two domains.

    ``DETECTRON2_DATASETS=FOLDER`` among the overrides sets the environment variable that Detectron2 knows by this name.
    """

    name = "detectron2"
    metric = "bbox/AP50"
    weights = "model_final.pth"
    keys: Mapping[str, str] = {
        "output": "OUTPUT_DIR",
        "seed": "SEED",
        "steps": "SOLVER.MAX_ITER",
        "weighting": "GH.WEIGHTING",
        "scope": "GH.SCOPE",
        "weights": "MODEL.WEIGHTS",
    }

    def load(self, path: Path, overrides: Sequence[str], metric: str | None = None) -> Any:
        from gh_downstream.detection.detectron2.trainer import load_cfg

        if metric is not None and "bbox/AP" not in metric:
            raise ValueError(f"there is no metric {metric!r}; Detectron2's are bbox/AP50 and the like")
        pairs: list[str] = []
        for override in overrides:
            key, equals, value = override.partition("=")
            if not (key and equals):
                raise ValueError(f"override {override!r}: expected KEY=VALUE, such as SOLVER.MAX_ITER=100")
            if key == "DETECTRON2_DATASETS":
                os.environ[key] = value
            else:
                pairs += [key, value]
        return load_cfg(str(path), pairs)

    def content(self, config: Any) -> dict[str, Any]:
        return yaml.safe_load(config.dump())

    def train(self, config: Any) -> dict[str, float]:
        from gh_downstream.detection.detectron2.trainer import train

        write_atomically(Path(config.OUTPUT_DIR) / "config.yaml", config.dump())
        results: Any = train(config, resume=True)
        if len(config.DATASETS.TEST) == 1:
            results = {"": results}
        # As Detectron2 names them in metrics.json: with the data set only where there are several.
        return {
            "/".join(part for part in (dataset, kind, metric) if part): value
            for dataset, kinds in results.items()
            for kind, metrics in kinds.items()
            for metric, value in metrics.items()
        }

    def read_lines(self, folder: Path) -> list[dict[str, float]]:
        from gh_downstream.detection.detectron2.metrics import read_metrics

        return read_metrics(folder / "metrics.json")


LOOP_ENGINES = (
    LoopEngine(
        "classification",
        "target/accuracy",
        "gh_downstream.classification",
        "ClassificationConfig",
        ("backbone", "transform", "bottleneck"),
        methods=True,
    ),
    LoopEngine(
        "retrieval",
        "target/image_to_text_R@1",
        "gh_downstream.retrieval",
        "RetrievalConfig",
        ("encoder", "task", "init"),
    ),
    LoopEngine(
        "torchvision", "foggy/ap50", "gh_downstream.detection.torchvision", "DetectionConfig", ("detector", "flip")
    ),
)
"""Those of our own loop."""

ENGINES: Mapping[str, Engine] = {engine.name: engine for engine in (*LOOP_ENGINES, Detectron2Engine())}
"""The engines by their names."""


def find_engine(name: str) -> Engine:
    """Return an engine by its name.

    Raises:
        ValueError: There is no such engine.
    """
    if name not in ENGINES:
        raise ValueError(f"no engine {name!r}: there are {', '.join(ENGINES)}")
    return ENGINES[name]


def engine_of(path: Path) -> Engine:
    """Return the engine that a configuration is for, by the keys in it and in the files that it is based on.

    Args:
        path: The YAML file. Detectron2's keys are in capitals.

    Raises:
        ValueError: The file cannot be read, or its keys are those of no engine, or of several.
    """
    from gh_downstream.training.config import read_layers

    keys = {str(key) for _, layer in read_layers(path) for key in layer}
    if any(key.isupper() for key in keys):
        return ENGINES["detectron2"]
    found = [engine for engine in LOOP_ENGINES if engine.own_keys & keys]
    if len(found) != 1:
        raise ValueError(f"{path}: its keys do not say which engine it is for; give --engine")
    return found[0]


def choose_detector(wanted: str | None = None) -> str:
    """Return the name of the engine that trains detectors, and log why.

    Args:
        wanted: ``detectron2`` or ``torchvision``; by default Detectron2 where it can be imported.
    """
    engine, reason = wanted, "as asked for"
    if engine is None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import gh_downstream.detection.detectron2  # noqa: F401
            engine, reason = "detectron2", "which can be imported here (--engine torchvision takes the other)"
        except Exception as error:  # Old releases fail on today's NumPy and Pillow in many ways.
            engine, reason = "torchvision", f"as Detectron2 cannot be imported here: {error}"
    logger.info("engine: %s, %s", engine, reason)
    return engine
