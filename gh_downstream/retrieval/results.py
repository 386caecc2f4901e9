"""The results of a run in its output folder.

::

    OUTPUT/results.json    {"configuration": hash, "results": {validation set: result}}
    OUTPUT/results.md      the same as a table
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from gh_downstream.reporting import Table, write_atomically
from gh_downstream.retrieval.config import RetrievalConfig
from gh_downstream.retrieval.evaluation import RetrievalResult, results_table
from gh_downstream.training import config_hash


def write_results(config: RetrievalConfig, results: Mapping[str, RetrievalResult]) -> None:
    """Write ``results.json`` and, with the same as a table for reading, ``results.md`` into the output folder."""
    output = Path(config.output)
    content = {
        "configuration": config_hash(config),
        "results": {name: result.as_dict() for name, result in results.items()},
    }
    write_atomically(output / "results.json", json.dumps(content, indent=2))
    result_table(output).write_markdown(output / "results.md")


def read_results(output: str | Path) -> tuple[dict[str, RetrievalResult], str]:
    """Return the results in an output folder by the name of the validation set, and the hash of the configuration."""
    content = json.loads((Path(output) / "results.json").read_text())
    results = {name: RetrievalResult.from_dict(result) for name, result in content["results"].items()}
    return results, content["configuration"]


def result_table(output: str | Path) -> Table:
    """Return a table with a row for each validation set from the results in an output folder."""
    results, configuration = read_results(output)
    return results_table(list(results.values()), config_hash=configuration, title=f"Recall of {Path(output).name}")
