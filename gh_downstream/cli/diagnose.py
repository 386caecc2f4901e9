"""``gh-downstream diagnose``: whether harmonization can help a training, when, and how one knows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from gh_downstream.cli.compare import names_of


def diagnose(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="output folder of a training", show_default=False)],
    batches: Annotated[int, typer.Option(help="batches to measure at the last checkpoint; 0 reads only the log")] = 32,
    weightings: Annotated[
        str,
        typer.Option(
            help="weightings to try, such as gh,gh++; by default the forms of GH, and with TorchJD the bisector"
        ),
    ] = "",
    output: Annotated[
        Path | None, typer.Option(help="report to write; by default diagnosis.html in the folder")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="what to change, such as where the data are", show_default=False),
    ] = None,
) -> None:
    """Say whether harmonization can help a training, and why.

    Looks at a training that has measured its gradients, with harmonization.weighting=sum or another. Says how often
    and how strongly its losses conflict beyond the noise of batches, in which layers, and what each weighting would
    change. The training is left as it is.

    \b
    Example: gh-downstream diagnose outputs/classification/digits
    """
    from gh_downstream.comparison.diagnosis import diagnose as find
    from gh_downstream.comparison.engines import ENGINES, engine_of

    if batches < 0:
        raise ValueError(f"--batches is a number of at least 0, got {batches}")
    words = names_of("weightings", weightings)
    logs = {"metrics.jsonl": "classification", "metrics.json": "detectron2"}  # whose readers are those of all
    log = next((run / name for name in logs if (run / name).is_file()), None)
    if log is None:
        raise ValueError(f"{run} is no folder of a training: there is neither {' nor '.join(logs)} in it")
    trained = ENGINES[logs[log.name]]
    lines, keys = trained.read_lines(run), trained.keys
    if not any("gh/cosine" in line for line in lines):
        raise ValueError(
            f"{log} has no gh/cosine: either the weighting was none (train some steps with {keys['weighting']}=sum, "
            "which leaves the updates as they are), or no measured step was logged before the training ended (set "
            f"{keys['log_every']} lower)"
        )
    probe, path = None, run / "config.yaml"
    if batches:
        if not path.is_file():
            raise ValueError(f"there is no {path} to measure by: --batches 0 looks at the log alone")
        for talkative in ("detectron2", "fvcore"):  # on the model and the data, which the training has said
            logging.getLogger(talkative).setLevel(logging.ERROR)
        engine = engine_of(path)
        probe = engine.probe(engine.load(path, [*(overrides or []), engine.override("output", run)]), batches)
    found = find(probe, lines, words, keys["log_every"])
    for said in found.verdict():
        print(said)
    for table in found.tables():
        print()
        table.show()
    output = output or run / "diagnosis.html"
    found.write(output, f"Can harmonization help? {run.name}")
    print(f"\nreport: {output}")
