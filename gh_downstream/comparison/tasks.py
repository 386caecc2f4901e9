"""What can be compared: the tasks by name, and the engines that train them.

A workload is imported only when a task of it is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gh_downstream.training import ExperimentConfig, Trainer


@dataclass(frozen=True)
class GeneratedData:
    """Data that a task makes for itself.

    Attributes:
        folder: Where they lie, in the folder of all data.
        make: Makes them in such a folder; what is there already stays.
        source: Configuration's keys of the paths of a run without a target, with the file or folder in the folder.
        target: The further ones of a run with a target.
    """

    folder: str
    make: Callable[[Path], None]
    source: Mapping[str, str]
    target: Mapping[str, str]

    def overrides(self, datasets: Path, with_target: bool) -> list[str]:
        """Return what names the data in a configuration.

        Args:
            datasets: Folder of all data.
            with_target: Whether the run has a target.
        """
        paths = {**self.source, **(self.target if with_target else {})}
        return [f"{key}={datasets / self.folder / path}" for key, path in paths.items()]


@dataclass(frozen=True)
class Engine:
    """What trains a configuration.

    Attributes:
        schema: Class of the configuration.
        build_trainer: Reads the data and builds everything that a training needs.
    """

    schema: type[ExperimentConfig]
    build_trainer: Callable[..., Trainer]


@dataclass(frozen=True)
class Task:
    """One task of a comparison.

    Attributes:
        name: Names it in tables and folders.
        engine: One of :data:`ENGINES`.
        config: Path of the configuration, in the folder of all configurations or anywhere.
        metric: Metric of the evaluation that is compared; more of it is better.
        baselines: Those that are compared by default.
        source_only: The baseline without a target and without harmonization, if there is one.
        burn_in: The one that the others go on from, if there is one.
        data: Data that are made where they are missing; None where the configuration says all.
        overrides: What a baseline changes of the configuration, by its name; of another one, that it is the method.
        burn_in_config: Path of the configuration of the burn-in.
    """

    name: str
    engine: str
    config: str
    metric: str
    baselines: tuple[str, ...]
    source_only: str | None = None
    burn_in: str | None = None
    data: GeneratedData | None = None
    overrides: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    burn_in_config: str | None = None


ENGINES = ("classification", "retrieval", "detection")
METRICS = {
    "classification": "target/accuracy",
    "retrieval": "target/image_to_text_R@1",
    "detection": "foggy/ap50",
}
"""The metric of each engine that is compared where none is named."""


def load_engine(name: str) -> Engine:
    """Import the engine of a workload, and only this one.

    Raises:
        ValueError: There is no such engine.
        ImportError: What it needs is not installed; the message has the command.
    """
    if name == "classification":
        from gh_downstream.classification.config import ClassificationConfig
        from gh_downstream.classification.engine import build_trainer as build_classification

        return Engine(ClassificationConfig, build_classification)
    if name == "retrieval":
        from gh_downstream.retrieval.config import RetrievalConfig
        from gh_downstream.retrieval.engine import build_trainer as build_retrieval

        return Engine(RetrievalConfig, build_retrieval)
    if name == "detection":
        from gh_downstream.detection.torchvision.config import DetectionConfig
        from gh_downstream.detection.torchvision.engine import build_trainer as build_detection

        return Engine(DetectionConfig, build_detection)
    raise ValueError(f"no engine {name!r}: there are {', '.join(ENGINES)}")


def find_task(name: str) -> Task:
    """Return a task by its name.

    Raises:
        ValueError: There is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"no task {name!r}: there are {', '.join(TASKS)}, and --config FILE takes any configuration")
    return TASKS[name]


def task_of_config(path: str | Path, engine: str, metric: str | None = None) -> Task:
    """Return the task of a configuration of the user's.

    Args:
        path: The YAML file.
        engine: One of :data:`ENGINES`.
        metric: Metric of its evaluation; by default the usual one of the engine.
    """
    file = Path(path).resolve()
    return Task(file.stem, engine, str(file), metric or METRICS[engine], (OWN_BASELINE,), overrides={OWN_BASELINE: ()})


OWN_BASELINE = "as-configured"
"""The baseline of a task that is one configuration of the user's."""


def _make_scenes(folder: Path) -> None:
    from gh_downstream.retrieval.data import make_mini_scenes

    make_mini_scenes(folder)


def _make_streets(folder: Path) -> None:
    from gh_downstream.detection.data.mini_cityscapes import make_mini_cityscapes

    make_mini_cityscapes(folder)


_SCENES = GeneratedData(
    "mini_scenes",
    _make_scenes,
    {
        "source.path": "source/train.csv",
        "validation.source.path": "source/test.csv",
        "validation.target.path": "target/test.jsonl",
    },
    {"target.path": "target/train.jsonl"},
)
_STREETS = GeneratedData(
    "mini_cityscapes", _make_streets, {"source.root": "", "validation.foggy.root": ""}, {"target.root": ""}
)
_CLASSIFICATION = Task(
    "digits",
    "classification",
    "classification/digits.yaml",
    METRICS["classification"],
    ("cdan",),
    source_only="source_only",
    overrides={"source_only": ("method=source_only", "harmonization.weighting=none")},
)
_REAL_DIGITS = dataclasses.replace(
    _CLASSIFICATION, overrides={**_CLASSIFICATION.overrides, "mcd": ("method=mcd", "training.steps=120")}
)
TASKS = {
    task.name: task
    for task in (
        _CLASSIFICATION,
        dataclasses.replace(_REAL_DIGITS, name="mnist-usps", config="classification/mnist-usps.yaml"),
        dataclasses.replace(_REAL_DIGITS, name="usps-mnist", config="classification/usps-mnist.yaml"),
        Task(
            "retrieval",
            "retrieval",
            "retrieval/mini.yaml",
            METRICS["retrieval"],
            ("aligned",),
            source_only="source-only",
            data=_SCENES,
            overrides={"source-only": ("alignment.mmd.weight=0", "harmonization.weighting=none"), "aligned": ()},
        ),
        Task(
            "detection",
            "detection",
            "detection/torchvision/mini.yaml",
            METRICS["detection"],
            ("adapted",),
            source_only="source-only",
            burn_in="burn-in",
            data=_STREETS,
            overrides={
                "source-only": ("target=null", "alignment=null", "harmonization.weighting=none"),
                "adapted": (),
                "burn-in": (),
            },
            burn_in_config="detection/torchvision/mini-burn-in.yaml",
        ),
    )
}
"""The tasks by name; :func:`task_of_config` makes one of any configuration."""
