"""``gh-downstream benchmark``: what harmonization costs a training step, of every engine."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gh_downstream.training import ExperimentConfig
    from gh_downstream.training.costs import Workload

CONFIGS: dict[str, list[tuple[str, ...]]] = {
    "torchvision": [("detection/torchvision/mini",)],
    "detectron2": [("detection/mini/da",)],
    "retrieval": [("retrieval/mini",)],
    "classification": [
        ("classification/digits", "method=source_only", "harmonization.weighting=none"),
        *(("classification/digits", f"method={method}") for method in ("dann", "cdan", "mcd", "gvb", "dwl")),
        ("classification/digits-ssrt",),
    ],
}
"""Configurations, with what is changed of them, that are measured of each engine where none is given: the mini task, or
each method on the digits."""


def benchmark(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="What to change, as the training takes it: batch_size=4 or SOLVER.IMS_PER_BATCH 4."),
    ] = None,
    engine: Annotated[str, typer.Option(help=f"What trains: {', '.join(CONFIGS)}.")] = "torchvision",
    config: Annotated[
        str | None, typer.Option(help="File or name of a configuration; by default the mini task, or each method.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of 4 steps of each variant, at least 2.")] = 10,
    output: Annotated[Path, typer.Option(help="Folder of the tables.")] = Path("outputs/benchmark"),
) -> None:
    """Measure what harmonization costs a step.

    Time, FLOPs and memory, as ratios to the plain step. The mini data are drawn where the configuration names them and
    they are missing; other data have to be there.

    \b
    Example: gh-downstream benchmark --engine retrieval --rounds 3
    """
    from gh_downstream.training.configs import find_config
    from gh_downstream.training.costs import costs_table, measure_costs

    if engine not in CONFIGS:
        raise ValueError(f"--engine: there are {', '.join(CONFIGS)}, got {engine!r}")
    given = ["--engine", engine, *(["--config", config] if config else []), "--rounds", str(rounds), *(overrides or ())]
    chosen = [(config,)] if config else CONFIGS[engine]
    measured = [
        measure_costs(_workload(engine, find_config(path), [*keys, *(overrides or ())]), rounds)
        for path, *keys in chosen
    ]
    table = costs_table(measured, shlex.join(["gh-downstream", "benchmark", *given]))
    name = f"{engine}-{Path(config).stem}" if config else engine
    table.write_json(output / f"{name}.json")
    table.write_markdown(output / f"{name}.md")
    table.show()


def _workload(engine: str, path: Path, overrides: Sequence[str]) -> Callable[[], Workload]:
    """What makes the workload of a configuration, whose mini data are there."""
    if engine == "detectron2":
        from gh_downstream.detection.detectron2 import benchmark as detectron2
        from gh_downstream.detection.detectron2.trainer import load_cfg

        names = load_cfg(str(path), overrides).DATASETS
        mini = any(name.startswith("mini_cityscapes") for name in (*names.TRAIN, *names.TARGET))
        folder = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"), "mini_cityscapes")
        _draw_mini_data([folder] if mini else [])
        return partial(detectron2.training_steps, str(path), overrides)
    from gh_downstream.comparison.engines import LOOP_ENGINES
    from gh_downstream.training.benchmark import training_steps

    trained = next(known for known in LOOP_ENGINES if known.name == engine)
    settings = trained.load(path, overrides)
    _draw_mini_data(_data_paths(settings))
    return partial(training_steps, trained.build_trainer, settings, getattr(settings, "method", path.stem))


def _data_paths(config: ExperimentConfig) -> list[Path]:
    sections = [section for name in ("source", "target") if (section := getattr(config, name))]
    values = [value for section in sections for value in dataclasses.asdict(section).values()]
    return [Path(value) for value in values if isinstance(value, str)]


def _draw_mini_data(paths: Iterable[Path]) -> None:
    from gh_downstream.comparison.presets import PRESETS

    makers = {preset.data.folder: preset.data.make for preset in PRESETS.values() if preset.data is not None}
    for path in paths:
        for folder in (path, *path.parents):
            if folder.name in makers and not folder.exists():
                makers[folder.name](folder)
