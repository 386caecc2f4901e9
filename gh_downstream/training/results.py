"""The results of a run in its output folder.

::

    OUTPUT/results.json    {"configuration": hash, "results": {validation set: result}}
    OUTPUT/results.md      the same as a table
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gh_downstream.files import write_atomically
from gh_downstream.reporting import Table
from gh_downstream.training.config import ExperimentConfig, config_hash

R = TypeVar("R")


class Result(Protocol):
    """What an evaluation of one data set gives."""

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        ...


def write_results(
    config: ExperimentConfig, results: Mapping[str, Result], table: Callable[[str | Path], Table]
) -> None:
    """Write ``results.json`` and, with the same for reading, ``results.md`` into the output folder.

    Args:
        config: The run.
        results: Results by the name of the validation set.
        table: Makes a table of the results in an output folder.
    """
    output = Path(config.output)
    content = {
        "configuration": config_hash(config),
        "results": {name: result.as_dict() for name, result in results.items()},
    }
    write_atomically(output / "results.json", json.dumps(content, indent=2))
    table(output).write_markdown(output / "results.md")


def read_results(output: str | Path, from_dict: Callable[[Mapping[str, Any]], R]) -> tuple[dict[str, R], str]:
    """Return the results in an output folder by the name of the validation set, and the hash of the configuration.

    Args:
        output: The folder.
        from_dict: Makes a result of what its ``as_dict`` returned.
    """
    content = json.loads((Path(output) / "results.json").read_text())
    return {name: from_dict(result) for name, result in content["results"].items()}, content["configuration"]
