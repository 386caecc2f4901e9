"""The mini task from nothing to a report: every method from one shared burn-in, on small foggy streets.

The plan is here: data, runs, processes, tables and report. An :class:`Engine` trains a run and reads a finished one.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gh_downstream.detection.data import load_cityscapes
from gh_downstream.detection.data.mini_cityscapes import make_mini_cityscapes
from gh_downstream.detection.drawing import comparison_grid
from gh_downstream.detection.evaluation import APResult, Detection, ap_table
from gh_downstream.reporting import Table
from gh_downstream.reporting.gradients import Lines, gradient_pictures, gradient_table
from gh_downstream.reporting.html import Picture, Section, write_report
from gh_downstream.reporting.plots import Series, metric_curves
from gh_downstream.training import joined_hash
from gh_downstream.training.jobs import Job, run_all

logger = logging.getLogger(__name__)

RUNS = {
    "source-only": "source-only",
    "adapted": "adapted",
    "adapted + GH": "gh",
    "adapted + GH++": "gh++",
    "oracle": "oracle",
}
"""Name of each method in the report, and of its run and output folder."""


@dataclass(frozen=True)
class Training:
    """One training of the plan.

    Attributes:
        run: ``burn-in``, or one of the values of :data:`RUNS`, which go on from the burn-in of their seed.
        configs: Folder with the configurations of detection, those of each engine in a folder of their own.
        data: Folder of Mini-Cityscapes.
        output: Folder of the runs of one engine.
        seed: Seed of everything random, 0 or more.
    """

    run: str
    configs: Path
    data: Path
    output: Path
    seed: int

    @property
    def folder(self) -> Path:
        """Folder of this training."""
        return self.output / f"seed{self.seed}" / self.run

    @property
    def burn_in(self) -> Path:
        """Folder of the burn-in that it goes on from."""
        return self.folder.with_name("burn-in")


@dataclass(frozen=True)
class FinishedRun:
    """What the report needs of a finished training, whichever engine took the steps.

    Attributes:
        result: Average precision on the foggy validation streets.
        configuration: Hash of the configuration.
        detections: What was detected there.
        ap50: Steps, and AP50 there in percent after so many steps.
        gradients: The logged steps whose gradients were measured, counted from 1.
    """

    result: APResult
    configuration: str
    detections: Sequence[Detection]
    ap50: Series
    gradients: Lines


class Engine(Protocol):
    """What the module ``gh_downstream.detection.ENGINE.demo`` of an engine supplies.

    Attributes:
        DETECTOR: The detector that it trains, in a few words that name the engine.
    """

    DETECTOR: str

    def train(self, training: Training) -> int:
        """Train, or resume what was cut off; returns the number of steps that were left to take."""

    def read_run(self, folder: Path) -> FinishedRun:
        """Read a finished training from its folder."""


def choose_engine(wanted: str | None = None) -> str:
    """Return the name of the engine to use, and log why.

    Args:
        wanted: ``detectron2`` or ``torchvision``; by default Detectron2 where it can be imported.
    """
    engine, reason = wanted, "as asked for"
    if engine is None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import gh_downstream.detection.detectron2  # noqa: F401
            engine, reason = (
                "detectron2",
                "which can be imported here (--engine torchvision, for make ENGINE=torchvision, takes the other)",
            )
        except Exception as error:  # Old releases fail on today's NumPy and Pillow in many ways.
            engine, reason = "torchvision", f"as Detectron2 cannot be imported here: {error}"
    logger.info("engine: %s, %s", engine, reason)
    return engine


def load_engine(name: str) -> Engine:
    """Import an engine, and only this one.

    Args:
        name: ``detectron2`` or ``torchvision``.

    Raises:
        ValueError: There is no such engine.
        ImportError: What it needs is not installed; the message has the command.
    """
    if name == "detectron2":
        from gh_downstream.detection.detectron2 import demo as on_detectron2

        return on_detectron2
    if name == "torchvision":
        from gh_downstream.detection.torchvision import demo as on_torchvision

        return on_torchvision
    raise ValueError(f"no engine {name!r}: there are detectron2 and torchvision")


def run_demo(engine: str, configs: Path, data: Path, output: Path, seeds: int = 1, jobs: int | None = None) -> Table:
    """Make the data, train every method from one burn-in a seed, and write ``report.html``.

    What exists already is kept: a second call resumes what was cut off and rewrites the report.

    Args:
        engine: ``detectron2`` or ``torchvision``.
        configs: Folder with the configurations of detection.
        data: Folder of Mini-Cityscapes, made where it is missing.
        output: Its folder ``ENGINE`` takes the runs and the report.
        seeds: Number of seeds, each with a burn-in of its own.
        jobs: Trainings at a time; as many as there are cores by default.

    Returns:
        The table of average precision on fog.

    Raises:
        RuntimeError: A training failed; the message names its log.
        ValueError: ``data`` holds something else, or there is no such engine.
        ImportError: What the engine needs is not installed.
    """
    load_engine(engine)
    make_mini_cityscapes(data)
    train_runs(engine, configs, data, output / engine, seeds, jobs)
    return write_demo_report(engine, data, output / engine, seeds)


def train_runs(engine: str, configs: Path, data: Path, output: Path, seeds: int = 1, jobs: int | None = None) -> None:
    """Train the burn-in of each seed, then every method from it, in processes of their own.

    Args:
        engine: ``detectron2`` or ``torchvision``.
        configs: Folder with the configurations of detection.
        data: Folder of Mini-Cityscapes.
        output: Folder of the runs, of this engine alone.
        seeds: Number of seeds.
        jobs: Trainings at a time; as many as there are cores by default.

    Raises:
        RuntimeError: A training failed; the message names its log.
    """
    for runs in (["burn-in"], list(RUNS.values())):
        trainings = [Training(run, configs, data, output, seed) for seed in range(seeds) for run in runs]
        run_all([_job(engine, training) for training in trainings], jobs)


def _job(engine: str, training: Training) -> Job:
    return Job(
        f"seed {training.seed}, {training.run}",
        training.folder / "log.txt",
        functools.partial(_train, engine, training),
    )


def _train(engine: str, training: Training) -> str:
    """Train; returns a line about it."""
    began = time.monotonic()
    module = load_engine(engine)
    steps = module.train(training)
    took = f"{steps} steps in {time.monotonic() - began:.0f} s" if steps else "was finished already"
    return f"{took}, AP50 on fog {module.read_run(training.folder).result.ap50:.1f}"


def write_demo_report(engine: str, data: Path, output: Path, seeds: int = 1) -> Table:
    """Write ``report.html``, ``table.md`` and ``table.json`` from finished runs.

    Args:
        engine: ``detectron2`` or ``torchvision``.
        data: Folder of Mini-Cityscapes.
        output: Folder of the runs, as :func:`train_runs` left it.
        seeds: Number of seeds.

    Returns:
        The table of average precision on fog.
    """
    module = load_engine(engine)
    runs = {
        name: [module.read_run(output / f"seed{seed}" / run) for seed in range(seeds)] for name, run in RUNS.items()
    }
    table = _ap_table(runs, module.DETECTOR)
    table.write_markdown(output / "table.md")
    table.write_json(output / "table.json")
    write_report(
        output / "report.html",
        "Gradient Harmonization on small foggy streets",
        [
            Section("What this is", [_WHAT.format(detector=module.DETECTOR), _CAVEAT]),
            Section("Detection in fog", [table, *_pictures(runs, data, output)]),
            Section(
                "What harmonization did",
                [
                    gradient_table({name: [run.gradients for run in seeds] for name, seeds in runs.items()}),
                    *gradient_pictures({name: first.gradients for name, (first, *_) in runs.items()}),
                ],
            ),
        ],
    )
    return table


_WHAT = (
    "Five detectors, each a {detector}, go on from one burn-in on clear streets: on clear streets alone (source-only), "
    "with domain alignment to unlabelled foggy streets and the plain sum of the losses (adapted), the same with the "
    "gradients harmonized by GH and by exact GH++, and with the labels of the foggy streets (oracle). The streets are "
    "drawn by this package, in the layout of Cityscapes and Foggy Cityscapes."
)
_CAVEAT = (
    "This shows that the machinery works: the data, the adaptation, the harmonization, the report. It is not evidence "
    "that GH helps, or that it does not: single runs of this task differ by several points of AP50 from seed to seed, "
    "the images are drawn and the training is short. At equal norms GH, exact GH++ and the plain sum differ in the "
    "length of the step alone, so read every difference beside the gain, the length of the update over that of the "
    "plain sum."
)


def _ap_table(runs: Mapping[str, Sequence[FinishedRun]], detector: str) -> Table:
    joined = joined_hash(run.configuration for of_method in runs.values() for run in of_method)
    results = {name: [run.result for run in of_method] for name, of_method in runs.items()}
    table = ap_table(results, config_hash=joined, title="Average precision on foggy streets")
    return dataclasses.replace(table, header=[*table.header, f"detector: {detector}"])


def _pictures(runs: Mapping[str, Sequence[FinishedRun]], data: Path, output: Path) -> list[Picture]:
    """AP over the steps, and detections of the first seed on the same foggy images."""
    first = {name: of_method[0] for name, of_method in runs.items()}
    curves = {name: run.ap50 for name, run in first.items()}
    dataset = load_cityscapes(data, "val", 0.02)
    chosen = [dataset.records[k * len(dataset) // 3]["image_id"] for k in range(3)]
    detections = {name: run.detections for name, run in first.items()}
    grid = comparison_grid(dataset, detections, chosen, score_threshold=0.5)
    grid.save(output / "detections.png")
    return [
        Picture(metric_curves(curves, ylabel="AP50 on fog (%)"), "AP50 on the foggy validation streets, first seed."),
        Picture(
            grid, "Detections with a score of at least 0.5 on the same foggy streets, first seed; ground truth first."
        ),
    ]
