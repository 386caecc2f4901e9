"""Train and evaluate from a configuration, and export what was trained."""

import argparse
import csv
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from gh_downstream.comparison.engines import ENGINES, Engine, LoopEngine, engine_of, find_engine
from gh_downstream.files import check_folder, write_atomically

logger = logging.getLogger(__name__)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="what to change, such as training.steps=100", show_default=False),
]
Choice = Annotated[str | None, typer.Option("--engine", help=f"{', '.join(ENGINES)}; by default found from the keys")]
RunConfig = Annotated[str, typer.Option("--config", help="config.yaml of the training's output folder")]
WiseFT = Annotated[
    float,
    typer.Option(help="retrieval: share of the checkpoint's weights; the rest are the starting model's (WiSE-FT)"),
]


def train(
    config: Annotated[str, typer.Option(help="YAML file, or a name that gh-downstream configs list shows")],
    engine: Choice = None,
    check: Annotated[
        bool, typer.Option("--check", help="train nothing: read all data, decode every image, and name the faulty ones")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="train nothing: print the configuration with every default")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Train from a configuration; call again to resume.

    \b
    Example: gh-downstream train --config retrieval/mini harmonization.weighting=gh++
    """
    path, trains = _found(config, engine)
    if print_config:
        print(yaml.safe_dump(_resolved(path, trains, overrides or []), sort_keys=False), end="")
        return
    if check:
        trains.check(trains.load(path, overrides or []))
        return
    if not isinstance(trains, LoopEngine):
        _run_detectron2(path, overrides or [])
        return
    settings = trains.load(path, overrides or [])
    if _is_first():
        check_folder(Path(settings.output), "output")
    trains.module.build_trainer(settings).run()
    if settings.validation and not (Path(settings.output) / "results.json").exists():  # of a run that had finished
        trains.module.evaluate_checkpoint(settings, Path(settings.output) / "last.pt")
    trains.module.show_results(settings)
    if _is_first():
        names = sorted(path.name for path in Path(settings.output).iterdir() if not path.name.startswith("."))
        print(f"\nwritten to {settings.output}: {', '.join(names)}")


def evaluate(
    config: RunConfig,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="last.pt, best.pt, or a state dict; retrieval also without: the encoder before training"),
    ] = None,
    engine: Choice = None,
    wise_ft: WiseFT = 1.0,
    ranks: Annotated[
        Path | None, typer.Option(help="retrieval: file to write, JSON lines with the rank of each query")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Evaluate a checkpoint on validation sets.

    Writes into the folder evaluation of the output.

    \b
    Example: gh-downstream evaluate --config RUN/config.yaml --checkpoint RUN/last.pt
    """
    path, trained = _found(config, engine)
    if checkpoint is None and trained.name != "retrieval":
        raise ValueError("which weights? give --checkpoint; retrieval alone can be evaluated without any")
    options = _of_retrieval(trained, wise_ft=wise_ft, ranks=ranks)
    if ranks is not None and _is_first():
        check_folder(ranks.parent, f"--ranks {ranks}:")
    if not isinstance(trained, LoopEngine):
        _run_detectron2(path, overrides or [], checkpoint)
        return
    settings = trained.load(path, overrides or [])
    # Beside the results of the training, and of each other.
    settings.output = str(Path(settings.output, "evaluation", "" if wise_ft == 1 else f"wise-ft-{wise_ft:g}"))
    trained.module.evaluate_checkpoint(settings, checkpoint, **options)
    trained.module.show_results(settings)
    if _is_first():
        names = [
            Path(settings.output, "results.json"),
            Path(settings.output, "results.md"),
            *([ranks] if ranks else []),
        ]
        print(f"\nwritten: {', '.join(str(name) for name in names if name.exists())}")


def predict(
    config: RunConfig,
    checkpoint: Annotated[Path, typer.Option(help="last.pt, best.pt, or a state dict")],
    images: Annotated[Path, typer.Option(help="folder of images, with its subfolders")],
    output: Annotated[Path, typer.Option(help="CSV file to write")] = Path("predictions.csv"),
    overrides: Overrides = None,
) -> None:
    """Classify the images of a folder with a trained classifier.

    Writes a line for each image: file, class, probability.

    \b
    Example: gh-downstream predict --config RUN/config.yaml --checkpoint RUN/last.pt --images photos
    """
    from gh_downstream.classification.engine import predict as classify
    from gh_downstream.training.configs import find_config

    check_folder(output.parent, f"--output {output}:")
    rows = classify(find_engine("classification").load(find_config(config), overrides or []), checkpoint, images)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("file", "class", "probability"), *rows])
    write_atomically(output, table.getvalue().encode("utf-8", "surrogateescape"))  # file names are bytes
    print(f"{len(rows)} images: {output}")


def export(
    config: RunConfig,
    checkpoint: Annotated[Path, typer.Option(help="last.pt, best.pt, or a state dict")],
    output: Annotated[Path, typer.Option(help="folder to write to")],
    wise_ft: WiseFT = 1.0,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", help="upload the folder to this repository, which is created as a private one"
        ),
    ] = None,
) -> None:
    """Write the encoder of a retrieval model, or a DETR, with a model card.

    The library that it comes from, open_clip or transformers, reads the folder.

    \b
    Example: gh-downstream export --config RUN/config.yaml --checkpoint RUN/last.pt --output RUN/encoder
    """
    path, trained = _found(config, None)
    part = {"retrieval": "encoder", "native": "detector"}.get(trained.name)
    if part is None or not isinstance(trained, LoopEngine):
        raise ValueError(f"{path}: what engine {trained.name} trains is not exported; its checkpoints hold the weights")
    from gh_downstream.training.export import check_upload, upload

    options = _of_retrieval(trained, wise_ft=wise_ft)
    check_folder(output, "--output")
    if push_to_hub is not None:
        check_upload(push_to_hub, output)
    getattr(trained.module, f"export_{part}")(trained.load(path, []), checkpoint, output, push_to_hub, **options)
    print(f"{part}: {output}")
    if push_to_hub is not None:
        print(f"uploaded: {upload(push_to_hub, output)}")


def _of_retrieval(engine: Engine, **options: Any) -> dict[str, Any]:
    """The options that are not at their defaults; a ``ValueError`` where the engine has none of them."""
    given = {name: value for name, value in options.items() if value not in (None, 1.0)}
    if given and engine.name != "retrieval":
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} is for retrieval, not for engine {engine.name}")
    return given


def _is_first() -> bool:
    """Whether this process is the first of those that a launcher started, or alone."""
    return int(os.environ.get("RANK", 0)) == 0


def _found(config: str, engine: str | None) -> tuple[Path, Engine]:
    from gh_downstream.training.configs import find_config

    named = None if engine is None else find_engine(engine)
    path = find_config(config)
    found = named or engine_of(path)
    logger.info("%s, on the engine %s", path, found.name)
    return path, found


def _resolved(path: Path, engine: Engine, overrides: Sequence[str]) -> dict[str, Any]:
    if isinstance(engine, LoopEngine):
        return engine.content(engine.load(path, overrides))
    from gh_downstream.detection.detectron2.config import resolved_config

    return resolved_config(path, overrides)


def _run_detectron2(path: Path, overrides: Sequence[str], checkpoint: Path | None = None) -> None:
    """Train or resume, or evaluate a checkpoint."""
    from gh_downstream.detection.detectron2.command_line import work
    from gh_downstream.detection.detectron2.config import override_words

    words = override_words(overrides) + (["MODEL.WEIGHTS", str(checkpoint)] if checkpoint else [])
    work(argparse.Namespace(config_file=str(path), opts=words, resume=not checkpoint, eval_only=bool(checkpoint)))
