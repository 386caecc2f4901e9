"""The results of a run in its output folder, see :mod:`gh_downstream.training.results`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gh_downstream.reporting import Table
from gh_downstream.retrieval.config import RetrievalConfig
from gh_downstream.retrieval.evaluation import RetrievalResult, results_table
from gh_downstream.training import results as files


def write_results(config: RetrievalConfig, results: Mapping[str, RetrievalResult]) -> None:
    """Write ``results.json`` and ``results.md`` into the output folder."""
    files.write_results(config, results, result_table)


def read_results(output: str | Path) -> tuple[dict[str, RetrievalResult], str]:
    """Return the results in an output folder by the name of the validation set, and the hash of the configuration."""
    return files.read_results(output, RetrievalResult.from_dict)


def result_table(output: str | Path) -> Table:
    """Return a table with a row for each validation set from the results in an output folder."""
    results, configuration = read_results(output)
    return results_table(list(results.values()), config_hash=configuration, title=f"Recall of {Path(output).name}")
