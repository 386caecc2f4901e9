"""The configurations that come with the package, and what their keys mean."""

import itertools
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

    names = list_configs()
    width = max(map(len, names), default=0)
    for workload, group in itertools.groupby(names, key=lambda name: name.partition("/")[0]):
        print(f"{workload}:")
        for name in group:
            print(f"  {name:{width}}  {_purpose(find_config(name))}".rstrip())


def show(
    config: Annotated[str, typer.Argument(help="YAML file, or a name that gh-downstream configs list shows")],
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


def explain(key: Annotated[str, typer.Argument(help="a key, such as optimizer.lr, or its end, such as lr")]) -> None:
    """Say what a key means, its type and its default, for each engine that has it.

    \b
    Example: gh-downstream configs explain harmonization.period
    """
    from gh_downstream.cli import explain as documentation

    for found, engines in documentation.explain(key):
        default = f" = {found.default}" if found.default else ""
        print(f"{found.name}: {found.type}{default}  ({', '.join(engines)})")
        print(textwrap.fill(found.text, 100, initial_indent="    ", subsequent_indent="    "))


def _purpose(path: Path) -> str:
    """The first sentence of the comment that a file begins with."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    comment = " ".join(line.lstrip("# ") for line in lines)
    return comment.partition(". ")[0].rstrip(".")
