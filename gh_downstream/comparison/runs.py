"""The one loop: every preset and method with every weighting, scope and seed, trained in parallel.

The data order and the initial weights of a run follow from its seed alone, so that the weightings of a seed begin alike
and can be compared in pairs.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from gh_downstream.comparison.presets import Preset, Variant
from gh_downstream.comparison.weightings import in_length
from gh_downstream.files import write_atomically
from gh_downstream.training import ConfigError
from gh_downstream.training.config import changes
from gh_downstream.training.configs import find_config
from gh_downstream.training.jobs import Job, run_jobs

SCOPES = ("shared", "all")
SOURCE_ONLY, ORACLE, BURN_IN = "source-only", "oracle", "burn-in"
_OPTIONS = {
    "output": "--output",
    "seed": "--seeds",
    "method": "--methods",
    "weighting": "--weightings",
    "scope": "--scope",
}
"""What a comparison sets, and the option that does it."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        preset: What it is a run of.
        method: Its method, where there are methods.
        weighting: Its weighting, as it was named; or one of :data:`SOURCE_ONLY`, :data:`ORACLE`, :data:`BURN_IN`.
        scope: ``shared`` or ``all``; empty for a run without harmonization.
        seed: Seed of everything random.
        folder: Its output folder.
        config: The configuration's file.
        overrides: What it changes.
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
        """The metrics after the last step; empty before it is finished."""
        path = self.folder / "final.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def check(self) -> None:
        """Check what can be checked before anything is trained.

        Raises:
            ConfigError: The configuration lacks the metric, or the folder belongs to another configuration.
            ValueError: The configuration cannot be used.
            FileNotFoundError: There is no such configuration.
        """
        engine = self.preset.engine
        metric = None if self.weighting == BURN_IN else self.preset.metric
        config = engine.load(self.config, self.overrides, metric)
        path = self.folder / "config.yaml"
        if not path.exists():
            return
        same = {engine.keys["output"]: ""}
        if differing := changes(yaml.safe_load(path.read_text()) | same, engine.content(config) | same):
            listed = ", ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in differing.items())
            raise ConfigError(
                f"{self.folder} belongs to another configuration: {listed}; choose another --output, or delete the "
                "folder to start anew"
            )

    def train(self, gpu: int | None = None) -> str:
        """Train, or resume what was cut off, and write ``final.json``; returns a line about it.

        Args:
            gpu: Index of the GPU to train on.

        Raises:
            ValueError: The evaluation has no such metric.
        """
        if gpu is not None:
            torch.cuda.set_device(gpu)
        engine, metric, began = self.preset.engine, self.preset.metric, time.monotonic()
        metrics = engine.train(engine.load(self.config, self.overrides))
        if metric not in metrics and self.weighting != BURN_IN:
            raise ValueError(f"there is no metric {metric!r}; the evaluation has {', '.join(metrics)}")
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
        overrides: ``KEY=VALUE`` for every run but the burn-ins.

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
    overrides: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        for scope in self.scopes:
            if scope not in SCOPES:
                raise ValueError(f"scope is one of {', '.join(SCOPES)}, got {scope!r}")
        for preset in self.presets:
            for what, option in _OPTIONS.items():
                for override in self.overrides:
                    if override.partition("=")[0] == preset.engine.keys.get(what):
                        raise ValueError(f"{override} is set by the comparison: give {option} instead")
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

    def _of_seed(self, preset: Preset, seed: int) -> list[Run]:
        burn_in = None
        if preset.burn_in is not None:
            burn_in = self._run(preset, preset.burn_in, BURN_IN, seed)
        runs = []
        if self.source_only and preset.source_only is not None:
            runs.append(self._run(preset, preset.source_only, SOURCE_ONLY, seed, burn_in=burn_in))
        for method in self.methods or preset.methods or [""]:
            for word in self.weightings:
                for scope in ("shared",) if word == "sum" else self.scopes:
                    runs.append(self._run(preset, Variant(), word, seed, method, scope, burn_in))
        if self.oracle and preset.oracle is not None:
            runs.append(self._run(preset, preset.oracle, ORACLE, seed, burn_in=burn_in))
        return runs

    def _run(
        self,
        preset: Preset,
        variant: Variant,
        weighting: str,
        seed: int,
        method: str = "",
        scope: str = "",
        burn_in: Run | None = None,
    ) -> Run:
        engine = preset.engine
        parts = (preset.name, method, weighting, scope, f"seed{seed}")
        folder = self.output.joinpath(*(part.replace(":", "-") for part in parts if part))
        overrides = [engine.override("seed", seed), engine.override("output", folder)]
        if preset.data is not None:
            overrides += preset.data.overrides(self.datasets)
        if weighting != BURN_IN:
            overrides += [*preset.overrides, *preset.of_method.get(method, ()), *self.overrides]
        if burn_in is not None:
            overrides.append(engine.override("weights", burn_in.folder / engine.weights))
        if method:
            overrides.append(engine.override("method", method))
        if scope:
            word = in_length(weighting, self.length)
            overrides += [engine.override("weighting", word), engine.override("scope", scope)]
        else:
            overrides.append(engine.override("weighting", "none"))
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
        ValueError: A configuration cannot be used, its evaluation lacks the metric of its preset, the folder of a run
            belongs to another configuration, or that of the data holds something else; nothing is trained then.
        FileNotFoundError: A configuration is missing.
        ImportError: What an engine needs is not installed.
    """
    runs = comparison.runs()
    burn_ins = list(dict.fromkeys(run.burn_in for run in runs if run.burn_in is not None))
    for run in [*burn_ins, *runs]:
        run.check()
    for preset in comparison.presets:
        if preset.data is not None:
            preset.data.make(comparison.datasets / preset.data.folder)
    gpus = torch.cuda.device_count()
    failed: dict[Run, str] = {}
    for stage in ([*burn_ins, *(run for run in runs if run.burn_in is None)], [run for run in runs if run.burn_in]):
        waiting = {run.name: run for run in stage if not run.final_metrics and run.burn_in not in failed}
        trainings = [
            Job(run.name, run.folder / "log.txt", functools.partial(run.train, k % gpus if gpus else None))
            for k, run in enumerate(waiting.values())
        ]
        reasons = run_jobs(trainings, (gpus or None) if jobs is None else jobs)
        failed |= {waiting[name]: reason for name, reason in reasons.items()}
    return failed
