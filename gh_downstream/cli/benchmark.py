"""``gh-downstream benchmark``: what harmonization costs a training step, of every engine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gh_downstream.training.costs import Workload

CONFIGS: dict[str, list[tuple[str, ...]]] = {
    "native": [("detection/native/mini",)],
    "detectron2": [("detection/mini/da",)],
    "retrieval": [("retrieval/mini",)],
    "classification": [
        ("classification/digits", "method=source_only", "harmonization.weighting=none"),
        *(("classification/digits", f"method={method}") for method in ("dann", "cdan", "mcd", "gvb", "dwl")),
        ("classification/digits-ssrt",),
    ],
}
"""What is measured of each engine where no configuration is given: configurations with what is changed of them."""


def benchmark(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="what to change, as the engine takes it: training.mixed_precision=bf16, or SOLVER.AMP.ENABLED True",
        ),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help=f"{', '.join(CONFIGS)}; by default that of --config, or native")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="YAML file, or a name of configs list; by default the mini task, or each method")
    ] = None,
    rounds: Annotated[int, typer.Option(help="rounds of 4 steps of each variant, at least 2")] = 10,
    output: Annotated[Path, typer.Option(help="folder of the tables")] = Path("outputs/benchmark"),
) -> None:
    """Measure what harmonization costs a step.

    Time, FLOPs and memory, as ratios to the plain step. Missing mini data are drawn; other data have to be there.

    \b
    Example: gh-downstream benchmark --engine retrieval --rounds 3
    """
    from gh_downstream.comparison.engines import engine_of
    from gh_downstream.training.configs import find_config
    from gh_downstream.training.costs import costs_table, measure_costs

    engine = engine or (engine_of(find_config(config)).name if config else "native")
    if engine not in CONFIGS:
        raise ValueError(f"--engine: there are {', '.join(CONFIGS)}, got {engine!r}")
    given = ["--engine", engine, *(["--config", config] if config else []), "--rounds", str(rounds), *(overrides or ())]
    measured = [
        measure_costs(_workload(engine, find_config(path), [*keys, *(overrides or ())]), rounds)
        for path, *keys in ([(config,)] if config else CONFIGS[engine])
    ]
    table = costs_table(measured, shlex.join(["gh-downstream", "benchmark", *given]))
    table.write(output, f"{engine}-{Path(config).stem}" if config else engine)
    table.show()


def _workload(engine: str, path: Path, overrides: Sequence[str]) -> Callable[[], Workload]:
    """What makes the workload of a configuration, whose mini data are there."""
    if engine == "detectron2":
        from gh_downstream.detection.detectron2 import benchmark as detectron2
        from gh_downstream.detection.detectron2.config import override_words
        from gh_downstream.detection.detectron2.trainer import load_cfg

        overrides = override_words(overrides)
        names = load_cfg(str(path), overrides).DATASETS
        if any(name.startswith("mini_cityscapes") for name in (*names.TRAIN, *names.TARGET)):
            _draw_mini_data(Path(os.environ.get("DETECTRON2_DATASETS", "datasets"), "mini_cityscapes"))
        return partial(detectron2.training_steps, str(path), overrides)
    from gh_downstream.comparison.engines import LOOP_ENGINES
    from gh_downstream.training.benchmark import training_steps

    trained = next(known for known in LOOP_ENGINES if known.name == engine)
    settings = trained.load(path, overrides)
    content = trained.content(settings)
    for value in (value for name in ("source", "target") for value in (content[name] or {}).values()):
        if isinstance(value, str):
            _draw_mini_data(Path(value))
    return partial(training_steps, trained.module.build_trainer, settings, getattr(settings, "method", path.stem))


def _draw_mini_data(path: Path) -> None:
    """Draw those that a path lies in, where they are missing."""
    from gh_downstream.comparison.presets import PRESETS

    makers = {preset.data.folder: preset.data.make for preset in PRESETS.values() if preset.data is not None}
    for folder in (path, *path.parents):
        if folder.name in makers and not folder.exists():
            makers[folder.name](folder)
