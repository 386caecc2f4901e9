"""Train and evaluate from a configuration, and export what was trained."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gh_downstream.cli.engines import ENGINES, EngineName, engine_of

logger = logging.getLogger(__name__)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="what to change, such as training.steps=100", show_default=False),
]
Choice = Annotated[EngineName | None, typer.Option("--engine", help="what trains it; found from its keys by default")]
RunConfig = Annotated[str, typer.Option("--config", help="config.yaml of the training's output folder")]


def train(
    config: Annotated[str, typer.Option(help="YAML file, or a name that gh-downstream configs list shows")],
    engine: Choice = None,
    check: Annotated[
        bool, typer.Option("--check", help="retrieval: decode every image first, and name the faulty ones")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Train from a configuration; call again to resume.

    \b
    Example: gh-downstream train --config retrieval/mini harmonization.weighting=gh++
    """
    path, name = _found(config, engine)
    if check and name is not EngineName.RETRIEVAL:
        raise ValueError(f"--check is for retrieval, and {config} is for {name.value}: leave it out")
    if name is EngineName.DETECTRON2:
        _run_detectron2(path, overrides or [], resume=True)
        return
    settings = _load(name, path, overrides)
    module = ENGINES[name].module
    module.build_trainer(settings, **({"check": True} if check else {})).run()
    module.show_results(settings)


def evaluate(
    config: RunConfig,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="last.pt, best.pt, or a state dict; retrieval without it: the encoder as it starts"),
    ] = None,
    engine: Choice = None,
    overrides: Overrides = None,
) -> None:
    """Evaluate a checkpoint on validation sets.

    \b
    Example: gh-downstream evaluate --config RUN/config.yaml --checkpoint RUN/best.pt output=outputs/again
    """
    path, name = _found(config, engine)
    if checkpoint is None and name is not EngineName.RETRIEVAL:
        raise ValueError("which weights? give --checkpoint; retrieval alone can be evaluated without any")
    if name is EngineName.DETECTRON2:
        _run_detectron2(path, [*(overrides or []), "MODEL.WEIGHTS", str(checkpoint)], eval_only=True)
        return
    settings = _load(name, path, overrides)
    module = ENGINES[name].module
    module.evaluate_checkpoint(settings, checkpoint)
    module.show_results(settings)


def export(
    config: RunConfig,
    checkpoint: Annotated[Path, typer.Option(help="last.pt, best.pt, or a state dict")],
    output: Annotated[Path, typer.Option(help="folder to write to")],
) -> None:
    """Write the encoder of a retrieval model.

    As open_clip or transformers reads it, whichever it comes from.

    \b
    Example: gh-downstream export --config RUN/config.yaml --checkpoint RUN/last.pt --output RUN/encoder
    """
    from gh_downstream.retrieval.engine import export_encoder
    from gh_downstream.training.configs import find_config

    export_encoder(_load(EngineName.RETRIEVAL, find_config(config)), checkpoint, output)
    print(f"encoder: {output}")


def _found(config: str, engine: EngineName | None) -> tuple[Path, EngineName]:
    from gh_downstream.training.configs import find_config

    path = find_config(config)
    name = engine or engine_of(path)
    logger.info("%s, on the engine %s", path, name.value)
    return path, name


def _load(name: EngineName, path: Path, overrides: Sequence[str] | None = None) -> Any:
    from gh_downstream.training import load_config

    return load_config(ENGINES[name].schema, path, overrides or [])


def _run_detectron2(path: Path, overrides: Sequence[str], resume: bool = False, eval_only: bool = False) -> None:
    """With ``KEY=VALUE`` as every engine has it, or ``KEY VALUE`` as Detectron2 has it."""
    from gh_downstream.cli.train_net import work

    words = [word for override in overrides for word in override.split("=", 1)]
    work(argparse.Namespace(config_file=str(path), opts=words, resume=resume, eval_only=eval_only))
