"""The demo."""

from pathlib import Path
from typing import Annotated

import typer

from gh_downstream.cli.compare import Datasets, Jobs, train_and_report


def demo(
    only: Annotated[str | None, typer.Option(help="one half of it: detection, or retrieval")] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="engine of detection: detectron2 or native; by default Detectron2 if it can be imported"),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="more steps, and 3 seeds of retrieval")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="folder of the runs and the report; by default outputs/demo, with --full outputs/demo-full"),
    ] = None,
    datasets: Datasets = Path("datasets"),
    seeds: Annotated[int | None, typer.Option(help="number of seeds; by default 1, with --full 3 of retrieval")] = None,
    jobs: Jobs = None,
) -> None:
    """Train with and without GH on small drawn data, and write a report.

    Detection on foggy streets, and image-text retrieval on drawn scenes. Call again to resume.

    \b
    Example: gh-downstream demo --only retrieval
    """
    if only not in (None, "detection", "retrieval"):
        raise ValueError(f"--only is detection or retrieval, got {only!r}")
    if engine not in (None, "detectron2", "native"):
        raise ValueError(f"--engine is detectron2 or native, got {engine!r}")
    from gh_downstream.comparison.engines import choose_detector
    from gh_downstream.comparison.presets import find_preset
    from gh_downstream.comparison.runs import Comparison

    names = []
    if only != "retrieval":
        names.append("detection-detectron2" if choose_detector(engine) == "detectron2" else "detection")
    if only != "detection":
        names.append("retrieval")
    presets = [find_preset(name) if full else find_preset(name).in_small() for name in names]
    output = output or Path("outputs/demo-full" if full else "outputs/demo")
    comparison = Comparison(presets, ("sum", "gh", "gh++"), output, datasets, seeds=seeds, oracle=True)
    train_and_report(comparison, jobs)
