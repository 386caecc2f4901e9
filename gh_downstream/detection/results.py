"""The results of a run in its output folder, for either engine.

::

    OUTPUT/results.json             {"configuration": hash, "results": {data set: result}}
    OUTPUT/results.md               the same as tables
    OUTPUT/detections/NAME.json     the detections on a data set
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from gh_downstream.detection.evaluation import APResult, Detection, ap_table
from gh_downstream.files import write_atomically
from gh_downstream.reporting import Table


def write_results(output: str | Path, configuration: str, results: Mapping[str, APResult]) -> None:
    """Write ``results.json`` and, with the same results as tables, ``results.md``.

    Results on other data sets that are there stay if they are of the same configuration.

    Args:
        output: The output folder.
        configuration: Hash of the configuration that the results come from.
        results: Results by the name of the data set.

    Raises:
        ValueError: A ``results.json`` is there that cannot be read.
    """
    output = Path(output)
    kept: dict[str, APResult] = {}
    if (output / "results.json").exists():
        known, known_configuration = read_results(output)
        if known_configuration == configuration:
            kept = known
    content = {
        "configuration": configuration,
        "results": {name: result.as_dict() for name, result in (kept | dict(results)).items()},
    }
    write_atomically(output / "results.json", json.dumps(content, indent=2))
    tables = [table.to_markdown() for table in result_tables(output)]
    write_atomically(output / "results.md", "\n\n".join(tables) + "\n")


def read_results(output: str | Path) -> tuple[dict[str, APResult], str]:
    """Read what :func:`write_results` wrote.

    Returns:
        The results by the name of the data set, and the hash of the configuration.

    Raises:
        FileNotFoundError: There are no results in the folder.
        ValueError: The file cannot be read.
    """
    path = Path(output) / "results.json"
    try:
        content = json.loads(path.read_text())
        results = {name: APResult.from_dict(result) for name, result in content["results"].items()}
        return results, content["configuration"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no results ({error!r}); move it away") from error


def result_tables(output: str | Path) -> list[Table]:
    """Return a table for each data set from the results in an output folder."""
    results, configuration = read_results(output)
    return [ap_table({Path(output).name: result}, config_hash=configuration) for result in results.values()]


def write_detections(folder: str | Path, name: str, detections: Sequence[Detection]) -> None:
    """Write ``NAME.json`` with the detections on a data set: COCO's result format, but for categories from 0."""
    write_atomically(Path(folder) / f"{name}.json", json.dumps(detections))
