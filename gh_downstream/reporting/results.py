"""The results of a run in its output folder, for every workload.

::

    OUTPUT/results.json    {"configuration": hash, "results": {data set: result}}
    OUTPUT/results.md      the same as tables
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from gh_downstream.files import write_atomically
from gh_downstream.reporting.tables import Table


class Result(Protocol):
    """What an evaluation of one data set gives."""

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        ...


R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class ResultStore(Generic[R]):
    """Writes and reads the results of one workload.

    Args:
        from_dict: Makes a result of what its ``as_dict`` returned.
        to_tables: Makes tables of the name of a run, its results by data set, and the hash of its configuration.
    """

    from_dict: Callable[[Mapping[str, Any]], R]
    to_tables: Callable[[str, Mapping[str, R], str], Sequence[Table]]

    def write(self, output: str | Path, configuration: str, results: Mapping[str, R]) -> None:
        """Write results by the name of the data set into ``results.json`` and ``results.md`` of an output folder.

        Those on other data sets that are there stay if they are of the same configuration, by its hash.

        Raises:
            ValueError: A ``results.json`` is there that cannot be read.
        """
        output = Path(output)
        kept, before = self.read(output) if (output / "results.json").exists() else ({}, configuration)
        merged = (kept if before == configuration else {}) | dict(results)
        content = {name: result.as_dict() for name, result in merged.items()}
        text = json.dumps({"configuration": configuration, "results": content}, indent=2)
        write_atomically(output / "results.json", text)
        write_atomically(output / "results.md", "\n".join(table.to_markdown() for table in self.tables(output)))

    def read(self, output: str | Path) -> tuple[dict[str, R], str]:
        """Return the results in an output folder by the name of the data set, and the hash of the configuration.

        Raises:
            FileNotFoundError: There are no results in the folder.
            ValueError: The file cannot be read.
        """
        path = Path(output) / "results.json"
        try:
            content = json.loads(path.read_text())
            results = {name: self.from_dict(result) for name, result in content["results"].items()}
            return results, content["configuration"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no results ({error!r}); move it away") from error

    def tables(self, output: str | Path) -> Sequence[Table]:
        """Return the results in an output folder as tables."""
        results, configuration = self.read(output)
        return self.to_tables(Path(output).name, results, configuration)
