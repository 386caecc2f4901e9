"""What became of the cells of a comparison: numbers of each run, and the table of each task and baseline."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gh_downstream.comparison.grid import Cell, Failure, Grid, read_timing
from gh_downstream.files import write_atomically
from gh_downstream.reporting import Cell as TableCell
from gh_downstream.reporting import Spread, Table
from gh_downstream.reporting.plots import Series
from gh_downstream.training import read_metrics

BASE = "sum"
"""The weighting that the others are compared with."""


@dataclass(frozen=True)
class Run:
    """A finished cell.

    Attributes:
        cell: The cell.
        lines: The lines of its metrics.
        metric: The metric of its task after the last step.
        seconds: Seconds a step, without evaluations; not a number where they were not measured.
    """

    cell: Cell
    lines: Sequence[Mapping[str, float]]
    metric: float
    seconds: float

    @property
    def curve(self) -> Series:
        """Steps, and the metric after so many steps."""
        pairs = [(line["step"], line[self.cell.task.metric]) for line in self.lines if self.cell.task.metric in line]
        steps, values = zip(*pairs, strict=True)
        return steps, values

    @property
    def gradients(self) -> list[Mapping[str, float]]:
        """The lines of the steps whose gradients were measured."""
        return [line for line in self.lines if "gh/cosine" in line]

    def series(self, key: str) -> Series:
        """Steps and values of a key of the lines that have it."""
        found = [(line["step"], line[key]) for line in self.lines if key in line]
        return [step for step, _ in found], [value for _, value in found]


@dataclass(frozen=True)
class Row:
    """A weighting with a scope, over its seeds.

    Attributes:
        weighting: Its name; ``source-only`` for the run without harmonization.
        scope: ``shared`` or ``all``; a dash for the run without harmonization.
        runs: The finished runs by their seed.
    """

    weighting: str
    scope: str
    runs: Mapping[int, Run]

    @property
    def name(self) -> str:
        """Name of the row, with the scope where it is not the usual one."""
        return self.weighting if self.scope in ("shared", "–") else f"{self.weighting} ({self.scope})"

    @property
    def values(self) -> list[float]:
        """The metric of each run."""
        return [run.metric for run in self.runs.values()]

    @property
    def lines(self) -> list[Mapping[str, float]]:
        """The measured steps of all runs."""
        return [line for run in self.runs.values() for line in run.gradients]

    def mean(self, key: str) -> float:
        """Mean of a key of the measured steps of all runs that have it; not a number without any."""
        values = [line[key] for line in self.lines if key in line]
        return statistics.fmean(values) if values else math.nan

    @property
    def largest_weight(self) -> float:
        """Largest absolute value of a weight at a measured step."""
        weights = [abs(value) for line in self.lines for key, value in line.items() if key.startswith("gh/weight/")]
        return max(weights, default=math.nan)

    @property
    def norm_ratio(self) -> float:
        """Median over the measured steps of the longest gradient's norm over that of the shortest one."""
        ratios = []
        for line in self.lines:
            norms = [value for key, value in line.items() if key.startswith("gh/norm/")]
            if norms and min(norms) > 0:
                ratios.append(max(norms) / min(norms))
        return statistics.median(ratios) if ratios else math.nan

    @property
    def seconds(self) -> float:
        """Mean seconds a step."""
        measured = [run.seconds for run in self.runs.values() if math.isfinite(run.seconds)]
        return statistics.fmean(measured) if measured else math.nan


@dataclass(frozen=True)
class Difference:
    """A paired difference of the metric to that of the plain sum, over the seeds that both have.

    Attributes:
        mean: Mean of the differences, positive where the weighting is better.
        half: Half the length of the 95 % confidence interval (Student's t); not a number with one seed.
        pairs: Number of seeds.
    """

    mean: float
    half: float
    pairs: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside of the interval."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Group:
    """The rows of one task and baseline.

    Attributes:
        task: Name of the task.
        baseline: Name of the baseline.
        metric: Name of the metric.
        rows: The rows, in the order of the grid.
    """

    task: str
    baseline: str
    metric: str
    rows: Sequence[Row]

    @property
    def name(self) -> str:
        """Name of the group."""
        return f"{self.task}, {self.baseline}"

    @property
    def base(self) -> Row | None:
        """The plain sum, if it is there."""
        return next((row for row in self.rows if row.weighting == BASE), None)

    def difference(self, row: Row) -> Difference | None:
        """Return the difference of a row to the plain sum; None for that itself, or without a common seed."""
        base = self.base
        if base is None or row is base:
            return None
        return paired_difference(row, base)


def paired_difference(row: Row, base: Row) -> Difference | None:
    """Return the difference between two rows over the seeds that both have; None without any."""
    differences = [run.metric - base.runs[seed].metric for seed, run in row.runs.items() if seed in base.runs]
    if not differences:
        return None
    half = math.nan
    if len(differences) > 1:
        half = student_t(len(differences)) * statistics.stdev(differences) / math.sqrt(len(differences))
    return Difference(statistics.fmean(differences), half, len(differences))


def student_t(runs: int) -> float:
    """Return the two-sided 95 % quantile of Student's t for the mean of so many runs.

    Raises:
        ImportError: scipy is not installed.
    """
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ImportError("a confidence interval needs scipy: pip install scipy") from error
    return float(t.ppf(0.975, runs - 1))


def read_run(cell: Cell) -> Run | None:
    """Read a cell; None where it is not finished."""
    path, config = cell.folder / "metrics.jsonl", cell.folder / "config.yaml"
    if not (path.exists() and config.exists()):
        return None
    lines = read_metrics(path)
    last = yaml.safe_load(config.read_text())["training"]["steps"]
    final = [line[cell.task.metric] for line in lines if line["step"] == last and cell.task.metric in line]
    if not final:
        return None
    seconds, steps = read_timing(cell.folder)
    return Run(cell, lines, final[-1], seconds / steps if steps else math.nan)


def read_grid(grid: Grid) -> list[Group]:
    """Read all finished cells, by task and baseline.

    The source-only run of a task is a row of each of its baselines. Rows without a finished run are left out.
    """
    runs = [run for cell in grid.cells() if (run := read_run(cell)) is not None]
    groups = []
    for task in grid.tasks:
        of_task = [run for run in runs if run.cell.task == task]
        for baseline in grid.baselines or task.baselines:
            rows: dict[tuple[str, str], dict[int, Run]] = {}
            for run in of_task:
                cell = run.cell
                if cell.weighting is None:
                    rows.setdefault(("source-only", "–"), {})[cell.seed] = run
                elif cell.baseline == baseline:
                    rows.setdefault((cell.weighting, str(cell.scope)), {})[cell.seed] = run
            listed = [Row(weighting, scope, of_row) for (weighting, scope), of_row in rows.items()]
            groups.append(Group(task.name, baseline, task.metric, listed))
    return groups


def group_table(group: Group, failed: Sequence[Failure], length: str = "tasks") -> Table:
    """Return the table of one task and baseline.

    Args:
        group: Its rows.
        failed: Cells that went wrong.
        length: ``harmonization.length`` of the comparison.
    """
    rows: list[list[TableCell]] = []
    for row in group.rows:
        difference = group.difference(row)
        rows.append(
            [
                row.weighting,
                row.scope,
                len(row.runs),
                Spread.of(row.values) if len(row.runs) > 1 else row.values[0],
                math.nan if difference is None else difference.mean,
                "–" if difference is None or math.isnan(difference.half) else _interval(difference),
                100 * row.mean("gh/conflict_rate"),
                100 * row.mean("gh/opposed"),
                row.mean("gh/gain"),
                row.largest_weight,
                1000 * row.seconds,
            ]
        )
    columns = ["weighting", "scope", "runs", group.metric, f"– {BASE}", "95 % interval", "conflict %", "opposed %"]
    return Table(
        f"{group.name}: {group.metric}",
        [*columns, "gain", "largest weight", "ms/step"],
        rows,
        [
            f"– {BASE}: mean difference to the plain sum over the same seeds, and its 95 % interval (Student's t)",
            "conflict: steps whose gradients are at more than 90°; opposed: logged steps whose update points against a "
            "gradient; gain: mean length of the update over that of the plain sum; ms/step: wall-clock time "
            "without evaluations, beside the other trainings",
            _LENGTHS[length],
            "± is the sample standard deviation over seeds",
        ],
        [
            f"failed: {failure.cell.name}: {failure.reason}"
            for failure in failed
            if failure.cell.task.name == group.task
            and (failure.cell.weighting is None or failure.cell.baseline == group.baseline)
        ],
        digits=2,
    )


_LENGTHS = {
    "own": "length of the updates: as each method gives it",
    "tasks": "length of the updates: as each method gives it, those of the mean of the gradients times their number",
    "sum": "length of the updates: that of the plain sum for every method",
}


def write_results(folder: Path, groups: Iterable[Group], tables: Iterable[Table]) -> None:
    """Write ``tables.md``, and ``results.json`` with every number of every run."""
    write_atomically(folder / "tables.md", "\n".join(table.to_markdown() for table in tables))
    content = [_as_dict(group) for group in groups]
    write_atomically(folder / "results.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def _as_dict(group: Group) -> dict[str, Any]:
    rows = []
    for row in group.rows:
        difference = group.difference(row)
        spread = Spread.of(row.values) if len(row.values) > 1 else None
        numbers = {
            "mean": statistics.fmean(row.values),
            "std": math.nan if spread is None else spread.std,
            "difference": math.nan if difference is None else difference.mean,
            "low": math.nan if difference is None else difference.low,
            "high": math.nan if difference is None else difference.high,
            "conflict_rate": row.mean("gh/conflict_rate"),
            "opposed_rate": row.mean("gh/opposed"),
            "cosine": row.mean("gh/cosine"),
            "gain": row.mean("gh/gain"),
            "norm_ratio": row.norm_ratio,
            "largest_weight": row.largest_weight,
            "seconds_per_step": row.seconds,
        }
        by_seed = {str(seed): run.metric for seed, run in row.runs.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        rows.append({"weighting": row.weighting, "scope": row.scope, "by_seed": by_seed, **finite})
    return {"task": group.task, "baseline": group.baseline, "metric": group.metric, "rows": rows}


def _interval(difference: Difference) -> str:
    # The sums turn a rounded -0.0 into 0.0.
    return f"[{round(difference.low, 2) + 0.0:.2f}, {round(difference.high, 2) + 0.0:.2f}]"
