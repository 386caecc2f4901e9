"""What trains a configuration: an engine for each trainer, imported when it is used."""

import dataclasses
import logging
import os
import pkgutil
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gh_downstream.harmonization import Probe

logger = logging.getLogger(__name__)


class Engine(ABC):
    """What trains a configuration.

    Attributes:
        name: Its name.
        metric: Metric of an evaluation that is compared where none is named.
        keys: Keys of a configuration by what they are: ``output``, ``seed``, ``steps``, ``weighting``, ``scope``,
            ``log_every``, ``weights`` to start from, and ``method`` where there are methods.
        weights: File in the output folder that other runs can start from.
    """

    name: str
    metric: str
    keys: Mapping[str, str]
    weights: str

    def override(self, what: str, value: object) -> str:
        """Return the override that sets one of :attr:`keys`; a ``ValueError`` where the engine has no such key."""
        if what not in self.keys:
            raise ValueError(f"the configurations of engine {self.name} have no {what}")
        return f"{self.keys[what]}={value}"

    @abstractmethod
    def load(self, path: Path, overrides: Sequence[str], metric: str | None = None) -> Any:
        """Return a configuration with overrides ``KEY=VALUE``.

        Raises:
            ValueError: It cannot be used, or its evaluation will not have the metric, as far as this is known before.
            FileNotFoundError: There is no such file.
        """

    @abstractmethod
    def content(self, config: Any) -> dict[str, Any]:
        """Return a configuration as nested dictionaries, as ``config.yaml`` in its output folder holds it."""

    @abstractmethod
    def check(self, config: Any) -> None:
        """Read all data of a configuration and decode every image of them; an error names those that cannot be."""

    def prepare(self, config: Any) -> None:  # noqa: B027  # most have nothing to
        """Make what the trainings of a configuration share, before the first of them."""

    @abstractmethod
    def train(self, config: Any) -> dict[str, float]:
        """Train, or resume what was cut off; returns the metrics after the last step."""

    @abstractmethod
    def probe(self, config: Any, batches: int) -> Probe:
        """Measure the gradients of batches at the last checkpoint of a training, which is left as it is."""

    @abstractmethod
    def read_lines(self, folder: Path) -> list[dict[str, float]]:
        """Return what was logged: metrics by their names, and ``step``, the number of steps done by then."""


_LOOP_KEYS = {
    "output": "output",
    "seed": "training.seed",
    "steps": "training.steps",
    "weighting": "harmonization.weighting",
    "scope": "harmonization.scope",
    "log_every": "training.log_every",
    "weights": "training.init_from",
}


@dataclass(eq=False)
class LoopEngine(Engine):
    """A workload on the :class:`~gh_downstream.training.Trainer`.

    Attributes:
        package: Package with ``config`` and ``engine`` of the workload.
        schema_name: Name of the class of the configuration.
        own_keys: Keys that no other engine has; one of them stands in every configuration of this one.
    """

    name: str
    metric: str
    package: str
    schema_name: str
    own_keys: Set[str]
    keys: Mapping[str, str] = field(default_factory=_LOOP_KEYS.copy)
    weights: str = "last.pt"

    @property
    def schema(self) -> type[Any]:
        """The class of the configuration."""
        return pkgutil.resolve_name(f"{self.package}.config:{self.schema_name}")

    @property
    def module(self) -> Any:
        """The module with ``build_trainer``, ``check_data``, ``evaluate_checkpoint`` and ``show_results``."""
        return pkgutil.resolve_name(f"{self.package}.engine")

    def load(self, path: Path, overrides: Sequence[str], metric: str | None = None) -> Any:
        from gh_downstream.training import ConfigError, load_config

        config: Any = load_config(self.schema, path, overrides)
        if metric is not None:  # a configuration checks itself, also where it is made of another one
            try:
                dataclasses.replace(config, training=dataclasses.replace(config.training, best_metric=metric))
            except ValueError as error:
                raise ConfigError(f"{path}: {error}") from None
        return config

    def content(self, config: Any) -> dict[str, Any]:
        from gh_downstream.training.config import config_dict

        return config_dict(config)

    def check(self, config: Any) -> None:
        self.module.check_data(config)

    def prepare(self, config: Any) -> None:
        if getattr(config, "features", None) is not None:
            pkgutil.resolve_name(f"{self.package}.features:cache_features")(config, renew=False)

    def train(self, config: Any) -> dict[str, float]:
        return self.module.build_trainer(config).run()

    def probe(self, config: Any, batches: int) -> Probe:
        from gh_downstream.training.probing import probe_training

        return probe_training(self.module.build_trainer, config, batches)

    def read_lines(self, folder: Path) -> list[dict[str, float]]:
        from gh_downstream.training import read_metrics

        return read_metrics(folder / "metrics.jsonl")


class Detectron2Engine(Engine):
    """Detectron2's trainer; an override ``DETECTRON2_DATASETS=FOLDER`` sets the environment variable of that name."""

    name = "detectron2"
    metric = "bbox/AP50"
    weights = "model_final.pth"
    keys: Mapping[str, str] = {
        "output": "OUTPUT_DIR",
        "seed": "SEED",
        "steps": "SOLVER.MAX_ITER",
        "weighting": "GH.WEIGHTING",
        "scope": "GH.SCOPE",
        "log_every": "GH.LOG_PERIOD",
        "weights": "MODEL.WEIGHTS",
    }

    def load(self, path: Path, overrides: Sequence[str], metric: str | None = None) -> Any:
        from gh_downstream.detection.detectron2.config import override_words
        from gh_downstream.detection.detectron2.trainer import load_cfg

        if metric is not None and not re.fullmatch("(.+/)?bbox/AP(50|75|50-.+)?", metric):
            raise ValueError(f"there is no metric {metric!r}: there are bbox/AP, /AP50, /AP75, /AP50-CLASS")
        words = override_words(overrides)
        values = dict(zip(words[::2], words[1::2], strict=True))
        if "DETECTRON2_DATASETS" in values:
            os.environ["DETECTRON2_DATASETS"] = values.pop("DETECTRON2_DATASETS")
        return load_cfg(str(path), [word for pair in values.items() for word in pair])

    def content(self, config: Any) -> dict[str, Any]:
        return yaml.safe_load(config.dump(sort_keys=False))

    def check(self, config: Any) -> None:
        from gh_downstream.detection.detectron2.checks import check_data

        check_data(config)

    def train(self, config: Any) -> dict[str, float]:
        from gh_downstream.detection.detectron2.metrics import flat
        from gh_downstream.detection.detectron2.trainer import train

        return flat(train(config, resume=True))

    def probe(self, config: Any, batches: int) -> Probe:
        from gh_downstream.detection.detectron2.trainer import probe

        return probe(config, batches)

    def read_lines(self, folder: Path) -> list[dict[str, float]]:
        from gh_downstream.detection.detectron2.metrics import read_metrics

        return read_metrics(folder / "metrics.json")


_DETECTION = "gh_downstream.detection.native"
LOOP_ENGINES = (
    LoopEngine(
        *("classification", "target/accuracy", "gh_downstream.classification", "ClassificationConfig"),
        own_keys={"backbone", "transform", "bottleneck"},
        keys={**_LOOP_KEYS, "method": "method"},
    ),
    LoopEngine(
        *("retrieval", "target/image_to_text_R@1", "gh_downstream.retrieval", "RetrievalConfig"),
        own_keys={"encoder", "task", "init"},
    ),
    LoopEngine("native", "foggy/ap50", _DETECTION, "DetectionConfig", own_keys={"detector", "flip"}),
)
ENGINES: Mapping[str, Engine] = {engine.name: engine for engine in (*LOOP_ENGINES, Detectron2Engine())}
"""Those of our own loop, and all engines by their names."""


def find_engine(name: str) -> Engine:
    """Return an engine by its name; a ``ValueError`` lists those that there are."""
    if name not in ENGINES:
        raise ValueError(f"no engine {name!r}: there are {', '.join(ENGINES)}")
    return ENGINES[name]


def engine_of(path: Path) -> Engine:
    """Return the engine that a YAML file is for, by the keys in it and in the files that it is based on.

    Raises:
        ValueError: The file cannot be read, or its keys are those of no engine, or of several.
    """
    from gh_downstream.training.layers import read_layers

    keys = {str(key) for _, layer in read_layers(path) for key in layer}
    if any(key.isupper() for key in keys):  # as Detectron2's are
        return ENGINES["detectron2"]
    found = [engine for engine in LOOP_ENGINES if engine.own_keys & keys]
    if len(found) != 1:
        raise ValueError(f"{path}: its keys do not say which engine it is for; give --engine")
    return found[0]


def choose_detector(wanted: str | None = None) -> str:
    """Return the engine that trains detectors, by default Detectron2 where it can be imported, and log why."""
    engine, reason = wanted or "detectron2", "as asked for"
    if wanted is None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import gh_downstream.detection.detectron2  # noqa: F401
            reason = "which can be imported here (--engine native takes the other)"
        except Exception as error:  # Old releases fail on today's NumPy and Pillow in many ways.
            engine, reason = "native", f"as Detectron2 cannot be imported here: {error}"
    logger.info("engine: %s, %s", engine, reason)
    return engine
