"""The one loop: every preset and method with every weighting, scope and seed, trained in parallel.

The data order and the initial weights of a run follow from its seed alone, so that the weightings of a seed begin alike
and can be compared in pairs.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from gh_downstream.comparison.presets import Preset, Variant
from gh_downstream.comparison.weightings import in_length
from gh_downstream.files import only_writer, write_atomically
from gh_downstream.harmonization.checks import check_at_least, check_numbers
from gh_downstream.harmonization.harmonizer import SCOPES
from gh_downstream.training import ConfigError
from gh_downstream.training.config import changes
from gh_downstream.training.configs import find_config
from gh_downstream.training.jobs import Job, run_jobs

SOURCE_ONLY, ORACLE, BURN_IN = "source-only", "oracle", "burn-in"
_OPTIONS = {what: f"--{what}" for what in ("output", "scope")}
_OPTIONS |= {what: f"--{what}s" for what in ("seed", "method", "weighting")}
"""What a comparison sets, and the option that does it."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        preset: What it is a run of.
        method: Its method; empty where there are none.
        weighting: Its weighting, as it was named; or one of :data:`SOURCE_ONLY`, :data:`ORACLE`, :data:`BURN_IN`.
        scope: ``shared`` or ``all``; empty for a run without harmonization.
        seed: Seed of everything random.
        folder: Its output folder.
        config: The configuration's file, and ``overrides`` what it changes of it.
        burn_in: The run that it goes on from.
    """

    preset: Preset
    method: str
    weighting: str
    scope: str
    seed: int
    folder: Path
    config: Path
    overrides: tuple[str, ...]
    burn_in: Run | None = None

    @property
    def name(self) -> str:
        """Name in the log."""
        parts = (self.preset.name, self.method, self.weighting, self.scope, f"seed {self.seed}")
        return ", ".join(part for part in parts if part)

    @property
    def final_metrics(self) -> dict[str, float]:
        """The metrics after the last step; empty before it is finished; a ``ValueError`` where they lack the metric."""
        path = self.folder / "final.json"
        return self._with_metric(json.loads(path.read_text())) if path.exists() else {}

    def _with_metric(self, metrics: dict[str, float]) -> dict[str, float]:
        if self.preset.metric not in metrics and self.weighting != BURN_IN:
            raise ValueError(f"{self.folder}: no metric {self.preset.metric!r}; there are {', '.join(metrics)}")
        return metrics

    def check(self) -> None:
        """Check what can be checked before anything is trained.

        Raises:
            ValueError: The configuration cannot be used or lacks the metric, or the folder is that of another one.
            FileNotFoundError: There is no such configuration.
        """
        engine = self.preset.engine
        metric = None if self.weighting == BURN_IN else self.preset.metric
        content = engine.content(engine.load(self.config, self.overrides, metric))
        path = self.folder / "config.yaml"
        before = yaml.safe_load(path.read_text()) if path.exists() else content
        same = {engine.keys["output"]: ""}
        if differing := changes(before | same, content | same):
            listed = ", ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in differing.items())
            raise ConfigError(
                f"{self.folder} belongs to another configuration: {listed}; choose another --output, or delete the "
                "folder to start anew"
            )

    def train(self, gpu: int | None = None) -> str:
        """Train on a GPU, or resume what was cut off, and write ``final.json``; returns a line about it.

        Raises:
            ValueError: The evaluation has no such metric.
        """
        if gpu is not None:
            torch.cuda.set_device(gpu)
        engine, metric, began = self.preset.engine, self.preset.metric, time.monotonic()
        metrics = self._with_metric(engine.train(engine.load(self.config, self.overrides)))
        write_atomically(self.folder / "final.json", json.dumps(metrics) + "\n")
        took = f"{time.monotonic() - began:.0f} s"
        return f"{took}, {metric} {metrics[metric]:.1f}" if metric in metrics else took


@dataclass(frozen=True)
class Comparison:
    """What is trained.

    Attributes:
        presets: The tasks.
        weightings: Words of weightings. The differences are to ``sum``.
        output: Folder of the runs and of the report.
        datasets: Folder of the data that are generated.
        methods: Methods; those of the preset by default.
        scopes: ``shared``, ``all`` or both. The plain sum, for which it makes no difference, is run once.
        seeds: Number of seeds, from 0; None for that of each preset.
        length: ``tasks`` or ``sum``, the length of the updates of weightings that say none.
        source_only: Train the run without a target too, where a preset has one.
        oracle: Train the run with the labels of the target too, where a preset has one.
        steps: Steps of every run but the burn-ins; None for those of the configuration.
        overrides: ``KEY=VALUE`` for the same runs.
        margin: The difference that matters, in units of the metric, above 0.

    Raises:
        ValueError: A value is out of its range, or a weighting or a key cannot be used.
        ImportError: A weighting is one of TorchJD, which is not installed.
    """

    presets: Sequence[Preset]
    weightings: Sequence[str]
    output: Path
    datasets: Path
    methods: Sequence[str] = ()
    scopes: Sequence[str] = ("shared",)
    seeds: int | None = None
    length: str = "tasks"
    source_only: bool = True
    oracle: bool = False
    steps: int | None = None
    overrides: Sequence[str] = ()
    margin: float = 1.0

    def __post_init__(self) -> None:
        for what, given in (("task", self.presets), ("weighting", self.weightings), ("scope", self.scopes)):
            if not given:
                raise ValueError(f"nothing to compare: at least one {what} is needed")
        check_numbers({"seeds": self.seeds, "margin": self.margin}, seeds=">= 1", margin="> 0")
        if unknown := [scope for scope in self.scopes if scope not in SCOPES]:
            raise ValueError(f"scope is one of {', '.join(SCOPES)}, got {unknown[0]!r}")
        for preset, override, what in itertools.product(self.presets, self.overrides, _OPTIONS):
            if override.partition("=")[0] == preset.engine.keys.get(what):
                raise ValueError(f"{override} is set by the comparison: give {_OPTIONS[what]} instead")
        for weighting in self.weightings:
            in_length(weighting, self.length)

    def runs(self) -> list[Run]:
        """The runs that are compared, whole seeds after each other, so that what is finished can be compared."""
        most = self.seeds or max(preset.seeds for preset in self.presets)
        return [
            run
            for seed in range(most)
            for preset in self.presets
            if self.seeds is not None or seed < preset.seeds
            for run in self._of_seed(preset, seed)
        ]

    def _of_seed(self, preset: Preset, seed: int) -> Iterator[Run]:
        burn_in = self._run(preset, seed, None, preset.burn_in, BURN_IN) if preset.burn_in is not None else None
        run = functools.partial(self._run, preset, seed, burn_in)
        if self.source_only and preset.source_only is not None:
            yield run(preset.source_only, SOURCE_ONLY)
        for method in self.methods or preset.methods or [""]:
            for word in self.weightings:
                for scope in ("shared",) if word == "sum" else self.scopes:
                    yield run(Variant(), word, method, scope)
        if self.oracle and preset.oracle is not None:
            yield run(preset.oracle, ORACLE)

    def _run(
        self,
        preset: Preset,
        seed: int,
        burn_in: Run | None,
        variant: Variant,
        weighting: str,
        method: str = "",
        scope: str = "",
    ) -> Run:
        parts = (preset.name, method, weighting, scope, f"seed{seed}")
        folder = self.output.joinpath(*(part.replace(":", "-") for part in parts if part))
        overrides = [] if preset.data is None else list(preset.data.overrides(self.datasets))
        if weighting != BURN_IN:
            overrides += [*preset.overrides, *preset.of_method.get(method, ()), *self.overrides]
        settings: dict[str, object] = {"seed": seed, "output": folder, "weighting": "none"}
        if self.steps is not None and weighting != BURN_IN:
            settings["steps"] = self.steps
        if burn_in is not None:
            settings["weights"] = burn_in.folder / preset.engine.weights
        if method:
            settings["method"] = method
        if scope:
            settings |= {"weighting": in_length(weighting, self.length), "scope": scope}
        overrides += [preset.engine.override(what, value) for what, value in settings.items()]
        overrides += variant.overrides
        config = find_config(variant.config or preset.config)
        return Run(preset, method, weighting, scope, seed, folder, config, tuple(overrides), burn_in)


def train_all(comparison: Comparison, jobs: int | None = None) -> dict[Run, str]:
    """Make the data, and train every run that is not finished; what was cut off resumes.

    Args:
        comparison: What is trained.
        jobs: Trainings at a time; by default as many as there are GPUs, or cores without any.

    Returns:
        What happened to the runs that went wrong, with the name of the log; empty when all went well. Those that would
        go on from one are not trained.

    Raises:
        Stopped: After SIGTERM or Ctrl-C, once what is trained has written its checkpoints.
        BlockingIOError: Another comparison writes into the folder.
        ValueError: See :meth:`Run.check`; or the folder of the data holds something else. Nothing is trained then.
        FileNotFoundError: A configuration is missing.
        ImportError: What an engine needs is not installed.
    """
    check_at_least("jobs", jobs, 1)
    runs = comparison.runs()
    burn_ins = list(dict.fromkeys(run.burn_in for run in runs if run.burn_in is not None))
    for run in [*burn_ins, *runs]:
        run.check()
    for preset in comparison.presets:
        if preset.data is not None:
            preset.data.make(comparison.datasets / preset.data.folder)
        for run in [run for run in runs if run.preset is preset and not run.final_metrics][:1]:
            preset.engine.prepare(preset.engine.load(run.config, run.overrides))
    gpus = torch.cuda.device_count()
    failed: dict[Run, str] = {}
    stages = [*burn_ins, *(run for run in runs if run.burn_in is None)], [run for run in runs if run.burn_in]
    with only_writer(comparison.output):
        for stage in stages:
            waiting = {run.name: run for run in stage if not run.final_metrics and run.burn_in not in failed}
            trainings = [
                Job(run.name, run.folder / "log.txt", functools.partial(run.train, k % gpus if gpus else None))
                for k, run in enumerate(waiting.values())
            ]
            reasons = run_jobs(trainings, (gpus or None) if jobs is None else jobs)
            failed |= {waiting[name]: reason for name, reason in reasons.items()}
    return failed
