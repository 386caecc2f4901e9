"""The grid of a comparison: every task and baseline with every weighting, scope and seed, trained in parallel.

Each cell is one run of the :class:`~gh_downstream.training.Trainer`, whose data order and initial weights follow from
the seed alone, so that the weightings of a seed begin alike and can be compared in pairs.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import nn

from gh_downstream.comparison.tasks import OWN_BASELINE, Task, load_engine
from gh_downstream.comparison.weightings import weighting_overrides
from gh_downstream.files import write_atomically
from gh_downstream.training import ConfigError, ExperimentConfig, load_config
from gh_downstream.training.config import changes, config_dict
from gh_downstream.training.jobs import Job, run_jobs

SCOPES = ("shared", "all")
_VARIED = {
    "output": "--output",
    "training.seed": "--seeds",
    "method": "--methods",
    "harmonization.weighting": "--weightings",
    "harmonization.scope": "--scope",
}
"""Keys that the grid sets, and the option that does it."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        task: The task.
        baseline: Name of the baseline.
        weighting: Name of the weighting; None for a run without harmonization.
        scope: ``shared`` or ``all``; None for a run without harmonization.
        seed: Seed of everything random.
        output: Folder of the comparison.
        config: The configuration's file.
        overrides: What it changes, all but the output folder.
    """

    task: Task
    baseline: str
    weighting: str | None
    scope: str | None
    seed: int
    output: Path
    config: Path
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Folder of this run, such as ``OUTPUT/digits/cdan/gh++-0.3/shared/seed0``."""
        parts = [self.task.name, self.baseline, self.weighting, self.scope, f"seed{self.seed}"]
        return self.output.joinpath(*(part.replace(":", "-") for part in parts if part is not None))

    @property
    def name(self) -> str:
        """Name in the log."""
        parts = [self.task.name, self.baseline, self.weighting, self.scope, f"seed {self.seed}"]
        return ", ".join(part for part in parts if part is not None)

    def load_config(self, *further: str) -> ExperimentConfig:
        """Return the configuration of the run.

        Raises:
            ConfigError: It cannot be used.
        """
        overrides = [*self.overrides, f"output={self.folder}", *further]
        return load_config(load_engine(self.task.engine).schema, self.config, overrides)


@dataclass(frozen=True)
class Grid:
    """A comparison.

    Attributes:
        tasks: What is trained.
        weightings: As :mod:`gh_downstream.comparison.weightings` writes them. The differences are to ``sum``.
        output: Folder of the cells and of the report.
        configs: Folder with the configurations of all workloads.
        datasets: Folder of the data that are generated.
        baselines: Baselines; those of the task by default.
        scopes: ``shared``, ``all`` or both. The plain sum, for which it makes no difference, is run once.
        seeds: Number of seeds, from 0.
        length: Length of the updates of every cell: ``own``, ``tasks`` or ``sum``.
        source_only: Train the baseline without a target too, where a task has one.
        overrides: ``KEY=VALUE`` for every cell.

    Raises:
        ValueError: A value is out of its range, or a weighting or a key cannot be used.
    """

    tasks: Sequence[Task]
    weightings: Sequence[str]
    output: Path
    configs: Path
    datasets: Path
    baselines: Sequence[str] = ()
    scopes: Sequence[str] = ("shared",)
    seeds: int = 3
    length: str = "tasks"
    source_only: bool = True
    overrides: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        for scope in self.scopes:
            if scope not in SCOPES:
                raise ValueError(f"scope is one of {', '.join(SCOPES)}, got {scope!r}")
        for override in self.overrides:
            key = override.partition("=")[0]
            if key in _VARIED:
                raise ValueError(f"{key} is set by the comparison: give {_VARIED[key]} instead of {override}")
        for weighting in self.weightings:
            weighting_overrides(weighting)

    def burn_ins(self) -> list[Cell]:
        """The runs that others go on from, one a seed of each task that has one."""
        return [
            self._cell(task, task.burn_in, None, None, seed, aligned=False)
            for task in self.tasks
            if task.burn_in is not None
            for seed in range(self.seeds)
        ]

    def cells(self) -> list[Cell]:
        """The runs that are compared, whole seeds after each other, so that what is finished can be compared."""
        cells = []
        for seed in range(self.seeds):
            for task in self.tasks:
                if self.source_only and task.source_only is not None:
                    cells.append(self._cell(task, task.source_only, None, None, seed, aligned=False))
                for baseline in self.baselines or task.baselines:
                    for weighting in self.weightings:
                        for scope in ("shared",) if weighting == "sum" else self.scopes:
                            cells.append(self._cell(task, baseline, weighting, scope, seed))
        return cells

    def _cell(
        self, task: Task, baseline: str, weighting: str | None, scope: str | None, seed: int, aligned: bool = True
    ) -> Cell:
        overrides = [f"training.seed={seed}"]
        if task.data is not None:
            overrides += task.data.overrides(self.datasets, aligned)
        if baseline != task.burn_in:
            overrides += self.overrides
            if task.burn_in is not None:
                burn_in = self._cell(task, task.burn_in, None, None, seed, aligned=False)
                overrides.append(f"training.init_from={burn_in.folder / 'last.pt'}")
        if task.baselines == (OWN_BASELINE,) and baseline != OWN_BASELINE:
            overrides.append(f"method={baseline}")
        if weighting is not None:
            overrides += [*weighting_overrides(weighting, self.length), f"harmonization.scope={scope}"]
        config = self.configs / task.config.replace("{baseline}", baseline)
        return Cell(task, baseline, weighting, scope, seed, self.output, config, tuple(overrides))


@dataclass(frozen=True)
class Failure:
    """A cell that went wrong.

    Attributes:
        cell: The cell.
        reason: What happened, with the name of the log.
    """

    cell: Cell
    reason: str


def train_grid(grid: Grid, jobs: int | None = None) -> list[Failure]:
    """Train every cell that is not finished; what was cut off resumes.

    Args:
        grid: The comparison.
        jobs: Trainings at a time; by default as many as there are GPUs, or cores without any.

    Returns:
        The cells that went wrong; none when all went well.

    Raises:
        ValueError: A configuration cannot be used, its evaluation lacks the metric of its task, or the folder of a cell
            belongs to another configuration. Nothing is trained then.
    """
    burn_ins, cells = grid.burn_ins(), grid.cells()
    for cell in [*burn_ins, *cells]:
        check_cell(cell, metric=cell not in burn_ins and cell.seed == 0)
    for task in grid.tasks:
        if task.data is not None:
            task.data.make(grid.datasets / task.data.folder)
    gpus = torch.cuda.device_count()
    failures = []
    for stage in (burn_ins, cells):
        trainings = [
            Job(cell.name, cell.folder / "log.txt", functools.partial(train_cell, cell, k % gpus if gpus else None))
            for k, cell in enumerate(stage)
        ]
        failed = run_jobs(trainings, (gpus or None) if jobs is None else jobs)
        failures += [Failure(cell, failed[cell.name]) for cell in stage if cell.name in failed]
    return failures


def check_cell(cell: Cell, metric: bool = True) -> None:
    """Check what can be checked of a cell before anything is trained.

    Args:
        cell: The cell.
        metric: Check that its evaluation has the metric of its task.

    Raises:
        ConfigError: The configuration cannot be used, lacks the metric, or the folder belongs to another one.
    """
    config = cell.load_config()
    if metric:
        cell.load_config(f"training.best_metric={cell.task.metric}")
    path = cell.folder / "config.yaml"
    if path.exists():
        before, now = yaml.safe_load(path.read_text()), config_dict(config)
        differing = changes({**before, "output": ""}, {**now, "output": ""})
        if differing:
            listed = ", ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in differing.items())
            raise ConfigError(
                f"{cell.folder} belongs to another configuration: {listed}; choose another --output, or delete the "
                "folder to start anew"
            )


def train_cell(cell: Cell, gpu: int | None = None) -> str:
    """Train, or resume what was cut off; returns a line about it.

    The folder gets ``timing.json`` beside what the trainer writes: the wall-clock ``seconds`` that so many ``steps``
    took, without evaluations.

    Args:
        cell: The cell.
        gpu: Index of the GPU to train on.
    """
    if gpu is not None:
        torch.cuda.set_device(gpu)
    trainer = load_engine(cell.task.engine).build_trainer(cell.load_config())
    evaluations: list[float] = []
    if trainer.evaluate is not None:
        trainer.evaluate = _timed(trainer.evaluate, evaluations)
    began, first = time.monotonic(), trainer.step
    metrics = trainer.run()
    seconds, steps = time.monotonic() - began - sum(evaluations), trainer.step - first
    if steps:
        before_seconds, before_steps = read_timing(cell.folder)
        timing = {"seconds": before_seconds + seconds, "steps": before_steps + steps}
        write_atomically(cell.folder / "timing.json", json.dumps(timing) + "\n")
    took = f"{steps} steps in {seconds:.0f} s" if steps else "was finished already"
    return f"{took}, {cell.task.metric} {metrics[cell.task.metric]:.1f}" if cell.task.metric in metrics else took


def read_timing(folder: Path) -> tuple[float, int]:
    """Return the seconds that a cell was trained for, and the steps that it took in them; zeros before that."""
    path = folder / "timing.json"
    if not path.exists():
        return 0.0, 0
    timing = json.loads(path.read_text())
    return timing["seconds"], timing["steps"]


def _timed(
    evaluate: Callable[[nn.Module], Mapping[str, float]], seconds: list[float]
) -> Callable[[nn.Module], Mapping[str, float]]:
    """Append the seconds of each call to a list."""

    def timed(model: nn.Module) -> Mapping[str, float]:
        began = time.monotonic()
        metrics = evaluate(model)
        seconds.append(time.monotonic() - began)
        return metrics

    return timed
