"""The configurations that come with the package, and what their keys mean."""

import itertools
import shutil
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from gh_downstream.comparison.engines import LoopEngine, engine_of


def list_names() -> None:
    """List the configurations that come with the package, by workload.

    \b
    Example: gh-downstream configs list
    """
    from gh_downstream.training.configs import find_config, list_configs

    names = [name for name in list_configs() if not Path(name).name.startswith("Base-")]
    width, columns = max(map(len, names)), shutil.get_terminal_size((120, 24)).columns
    for workload, group in itertools.groupby(names, key=lambda name: name.partition("/")[0]):
        print(f"{workload}:")
        for name in group:
            first = f"  {name:{width}}  "
            print(
                textwrap.fill(
                    _purpose(find_config(name)),
                    max(columns, len(first) + 40),
                    initial_indent=first,
                    subsequent_indent=" " * len(first),
                )
            )


def show(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="YAML file, or a name that gh-downstream configs list shows")
    ],
) -> None:
    """Print a whole configuration, with what it is based on and every default.

    For Detectron2 without the defaults.

    \b
    Example: gh-downstream configs show retrieval/mini
    """
    import yaml

    from gh_downstream.training.configs import find_config

    path = find_config(config)
    engine = engine_of(path)
    if isinstance(engine, LoopEngine):
        content = engine.content(engine.load(path, []))
    else:
        from gh_downstream.detection.detectron2.config import read_config

        content = read_config(path)
    print(f"# {path}\n{yaml.safe_dump(content, sort_keys=False)}", end="")


def explain(
    key: Annotated[str, typer.Argument(metavar="KEY", help="a key, such as optimizer.lr, or its end, such as lr")],
) -> None:
    """Say what a key means, its type and its default, for each engine that has it.

    \b
    Example: gh-downstream configs explain harmonization.period
    """
    from gh_downstream.cli import explain as documentation

    for found, engines in documentation.explain(key):
        default = f" = {found.default}" if found.default else ""
        print(f"{found.name}: {found.type}{default}  ({', '.join(engines)})")
        print(textwrap.fill(found.text.replace("``", "`"), 100, initial_indent="    ", subsequent_indent="    "))


def _purpose(path: Path) -> str:
    """The first sentence of the comment that a file begins with."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    comment = " ".join(line.lstrip("# ") for line in lines)
    return comment.partition(". ")[0].rstrip(".")
