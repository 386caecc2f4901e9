"""Compare weightings over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gh_downstream.comparison.runs import Comparison


Jobs = Annotated[
    int | None, typer.Option(help="trainings at a time; by default one for each GPU, or for each core without any")
]
Datasets = Annotated[Path, typer.Option(help="folder of the drawn data")]


def compare(
    task: Annotated[
        str,
        typer.Option(
            help="one or several: digits, mnist-usps, usps-mnist, office-caltech, retrieval, detection, "
            "detection-detectron2"
        ),
    ] = "digits",
    config: Annotated[
        str | None, typer.Option(help="instead of --task: a YAML file, or a name of configs list")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="engine of --config: classification, retrieval, native, detectron2; by default found from its keys"
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="what to compare of --config: a metric of its evaluation, higher being better")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="methods of classification, such as cdan,mcd; by default those of the task")
    ] = "",
    weightings: Annotated[
        str,
        typer.Option(
            help="what to compare, such as sum,gh,gh++,gh++:0.3,gh++:guard, or of TorchJD pcgrad,cagrad; "
            "differences are to sum"
        ),
    ] = "sum,gh,gh++,gh++:adaptive",
    lambdas: Annotated[
        str | None, typer.Option(help="instead of --weightings: exact GH++ at each lambda, such as 0:1:0.1")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            help="fixed weights of the alignment too, such as 0.1:10, as many as weightings beside sum: the best "
            "of each kind on half of the seeds is judged on the others"
        ),
    ] = None,
    scope: Annotated[str, typer.Option(help="shared, all, or both with a comma")] = "shared",
    seeds: Annotated[int, typer.Option(help="number of seeds")] = 3,
    margin: Annotated[
        float,
        typer.Option(help="difference that matters, in points; a smaller one is called the same where that is shown"),
    ] = 1.0,
    normalize: Annotated[
        bool,
        typer.Option("--normalize", help="give every update the length of the plain sum, to compare directions only"),
    ] = False,
    steps: Annotated[int | None, typer.Option(help="steps of every run; by default those of the configuration")] = None,
    no_source_only: Annotated[
        bool, typer.Option("--no-source-only", help="leave out the run without a target")
    ] = False,
    jobs: Jobs = None,
    output: Annotated[Path, typer.Option(help="folder of the runs and the report")] = Path("outputs/compare"),
    datasets: Datasets = Path("datasets"),
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="what to change in every run")
    ] = None,
) -> None:
    """Compare weightings on the same runs over several seeds, and write a report.

    Call again to resume.

    \b
    Example: gh-downstream compare --task digits --methods cdan,mcd --weightings sum,gh,gh++,pcgrad --seeds 5
    Example: gh-downstream compare --sweep 0.1:10 --seeds 10
    Example: gh-downstream compare --task digits,mnist-usps --lambdas 0:1:0.1
    Example: gh-downstream compare --config retrieval/mini training.steps=50
    """
    if config is None and (engine or metric):
        raise ValueError("--engine and --metric belong to --config: a task has its own")
    from gh_downstream.comparison.presets import find_presets, preset_of_config
    from gh_downstream.comparison.runs import Comparison
    from gh_downstream.comparison.tuning import SEEDS
    from gh_downstream.comparison.weightings import lambda_weightings, sweep_weightings

    if config is None:
        presets = [preset for name in names_of("task", task) for preset in find_presets(name)]
    else:
        presets = [preset_of_config(config, engine, metric)]
    words = names_of("weightings", weightings) if lambdas is None else lambda_weightings(lambdas)
    if sweep is not None:
        if seeds < SEEDS:
            raise ValueError(
                f"--sweep chooses on half of the seeds and judges on the others: give --seeds {SEEDS} or more"
            )
        words = list(dict.fromkeys([*words, *sweep_weightings(sweep, words)]))
    comparison = Comparison(
        presets,
        words,
        output,
        datasets,
        methods=names_of("methods", methods),
        scopes=names_of("scope", scope),
        seeds=seeds,
        length="sum" if normalize else "tasks",
        source_only=not no_source_only,
        steps=steps,
        overrides=overrides or [],
        margin=margin,
    )
    train_and_report(comparison, jobs)


def train_and_report(comparison: Comparison, jobs: int | None) -> None:
    """Train what is not finished, write the report, and show its tables; exit with code 1 where a run went wrong."""
    from gh_downstream.comparison.report import write_comparison
    from gh_downstream.comparison.runs import train_all

    failed = train_all(comparison, jobs)
    for table in write_comparison(comparison, failed):
        table.show()
        print()
    print(f"report: {comparison.output / 'report.html'}")
    if failed:
        raise typer.Exit(1)


def names_of(option: str, value: str) -> list[str]:
    """Return the names that an option gives with commas; a ``ValueError`` where it gives none but is not empty."""
    names = list(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if value and not names:
        raise ValueError(f"--{option} {value!r} names nothing: at least one {option.removesuffix('s')} is needed")
    return names
