"""What became of the runs of a comparison: their numbers, the differences to the plain sum, and tables."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gh_downstream.comparison.differences import Difference, verdicts
from gh_downstream.comparison.presets import Preset
from gh_downstream.comparison.runs import SOURCE_ONLY, Comparison, Run
from gh_downstream.reporting import Cell, Spread, Table

BASE = "sum"
"""The weighting that the others are compared with."""

Series = tuple[Sequence[float], Sequence[float]]
"""Steps and the values at these steps."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: output folder, what it logged, and the metric of its preset after the last step and at best."""

    folder: Path
    lines: Sequence[Mapping[str, float]]
    metric: float
    best: float

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
    """A weighting with a scope, and its finished runs by their seed.

    Attributes:
        name: What it is called in tables and figures.
        weighting: Its word; ``source-only`` and ``oracle`` for runs without harmonization.
        scope: ``shared`` or ``all``; empty without harmonization.
    """

    name: str
    weighting: str
    scope: str
    runs: Mapping[int, FinishedRun]

    @property
    def values(self) -> list[float]:
        """The metric of each run."""
        return [run.metric for run in self.runs.values()]

    @property
    def best(self) -> list[float]:
        """The best of the evaluations of each run."""
        return [run.best for run in self.runs.values()]

    @property
    def first(self) -> FinishedRun:
        """The run of the first seed."""
        return self.runs[min(self.runs)]

    @property
    def lines(self) -> list[Mapping[str, float]]:
        """The measured steps of all runs."""
        return [line for run in self.runs.values() for line in run.gradients]

    def measured(self, key: str) -> list[float]:
        """The values of a key at the measured steps of all runs that have it; not a number without any."""
        return [line[key] for line in self.lines if key in line] or [math.nan]

    def mean(self, key: str) -> float:
        """Their mean."""
        return statistics.fmean(self.measured(key))

    def _by_task(self, kind: str) -> list[list[float]]:
        """The values of ``gh/KIND/TASK`` of all tasks, at each measured step that has any."""
        found = [[value for key, value in line.items() if key.startswith(f"gh/{kind}/")] for line in self.lines]
        return [values for values in found if values]

    @property
    def largest_weight(self) -> float:
        """Largest absolute value of a weight at a measured step."""
        return max((abs(weight) for weights in self._by_task("weight") for weight in weights), default=math.nan)

    @property
    def norm_ratio(self) -> float:
        """Median over the measured steps of the longest gradient's norm over that of the shortest one."""
        ratios = [max(norms) / min(norms) for norms in self._by_task("norm") if min(norms) > 0]
        return statistics.median(ratios or [math.nan])


@dataclass(frozen=True)
class Group:
    """The rows of one preset and method (empty where there are none), in the order of the comparison.

    Those without a finished run are left out; ``datasets`` is the folder of all generated data.
    """

    preset: Preset
    method: str
    rows: Sequence[Row]
    datasets: Path

    @property
    def name(self) -> str:
        """Name of the group."""
        return f"{self.preset.name}, {self.method}" if self.method else self.preset.name

    @property
    def base(self) -> Row | None:
        """The plain sum, if it is there."""
        return next((row for row in self.rows if row.weighting == BASE), None)


def paired_difference(row: Row, base: Row) -> Difference | None:
    """Return the difference between two rows over the seeds that both have; None without any."""
    differences = [run.metric - base.runs[seed].metric for seed, run in row.runs.items() if seed in base.runs]
    return Difference(tuple(differences)) if differences else None


def read_comparison(comparison: Comparison) -> list[Group]:
    """Read all finished runs, by preset and method; those without a method are rows of each."""
    runs = [(run, finished) for run in comparison.runs() if (finished := read_run(run)) is not None]
    groups = []
    for preset in comparison.presets:
        for method in comparison.methods or preset.methods or [""]:
            rows: dict[tuple[str, str], dict[int, FinishedRun]] = {}
            for run, finished in runs:
                if run.preset == preset and run.method in ("", method):
                    rows.setdefault((run.weighting, run.scope), {})[run.seed] = finished
            named = [Row(_row_name(preset, *key), *key, of_row) for key, of_row in rows.items()]
            groups.append(Group(preset, method, named, comparison.datasets))
    return groups


def read_run(run: Run) -> FinishedRun | None:
    """Read a run; None where it is not finished."""
    if not (final := run.final_metrics):
        return None
    lines, last = run.preset.engine.read_lines(run.folder), final[run.preset.metric]
    # Step 0 is what it starts from.
    best = max([last, *(line[run.preset.metric] for line in lines if run.preset.metric in line and line["step"])])
    return FinishedRun(run.folder, lines, last, best)


def _row_name(preset: Preset, weighting: str, scope: str) -> str:
    if preset.adapted and scope:
        weighting = preset.adapted if weighting == BASE else f"{preset.adapted} + {weighting}"
    return f"{weighting} (all)" if scope == "all" else weighting


_LENGTHS = {
    "tasks": "length of the updates: as each weighting gives it, those of a mean of gradients times their number",
    "sum": "length of the updates: that of the plain sum for every weighting",
}


def metric_table(group: Group, failed: Mapping[Run, str], length: str = "tasks", margin: float = 1.0) -> Table:
    """Return the metric of every weighting, its difference to the plain sum and what that shows, and which runs failed.

    Args:
        group: The runs.
        failed: Those that failed, and why.
        length: ``tasks`` or ``sum``, of the updates.
        margin: The difference that matters, in units of the metric.
    """
    base = group.base
    others = [row for row in group.rows if base is not None and row is not base]
    found = {row.name: paired_difference(row, base) for row in others if base is not None}
    differences = {name: difference for name, difference in found.items() if difference is not None}
    said = verdicts(differences, margin)
    rows: list[list[Cell]] = []
    for row in group.rows:
        cells: list[Cell] = [row.name, len(row.runs), _spread(row.values), _spread(row.best)]
        if difference := differences.get(row.name):
            cells += [difference.mean, str(difference), difference.detectable, said.get(row.name, "–")]
        else:
            cells += [math.nan, "–", math.nan, "–"]
        rows.append(cells)
    return Table(
        f"{group.name}: {group.preset.metric}",
        ["weighting", "runs", group.preset.metric, "at its best", f"– {BASE}", "95 % interval", "detectable", "shown"],
        rows,
        [
            "at its best: at the best of the evaluations, which only labels of the target could choose; papers often "
            "report it",
            f"– {BASE}: mean difference to the plain sum over the same seeds, and its 95 % interval (Student's t); a "
            "star where that leaves out 0, which 5 % of them do by chance where there is no difference",
            "detectable: the smallest difference that so many seeds show in 80 % of the comparisons",
            f"shown, corrected for the number of rows (Holm): a difference, or one of less than {margin:g} (two "
            "one-sided tests)",
            "± is the sample standard deviation over seeds",
            _LENGTHS[length],
        ],
        [
            *_more_seeds(differences, margin),
            *(
                f"failed: {run.name}: {reason}"
                for run, reason in failed.items()
                if run.preset == group.preset and run.method in ("", group.method)
            ),
        ],
        digits=2,
    )


def _spread(values: Sequence[float]) -> Cell:
    return Spread.of(values) if len(values) > 1 else values[0]


def _more_seeds(differences: Mapping[str, Difference], margin: float) -> list[str]:
    wanted = {name: difference.seeds_for(margin) for name, difference in differences.items() if name != SOURCE_ONLY}
    more = {name: seeds for name, seeds in wanted.items() if seeds and seeds > len(differences[name].values)}
    if not more:
        return []
    listed = ", ".join(f"{name} {seeds}" for name, seeds in more.items())
    return [
        f"seeds that would show a difference of {margin:g} in 80 % of the comparisons, by the spread so far: {listed}"
    ]


_GRADIENTS: Mapping[str, Callable[[Row], Cell]] = {
    "weighting": lambda row: row.name,
    "conflict %": lambda row: 100 * row.mean("gh/conflict"),
    "opposed %": lambda row: 100 * row.mean("gh/opposed"),
    "mean cosine": lambda row: row.mean("gh/cosine"),
    "median angle": lambda row: statistics.median(row.measured("gh/angle")),
    "median norm ratio": lambda row: row.norm_ratio,
    "gain": lambda row: row.mean("gh/gain"),
    "largest weight": lambda row: row.largest_weight,
}
"""Columns of the table of gradients, and what stands in them."""


def gradient_table(group: Group) -> Table:
    """Return what the gradients of every weighting did, over the logged steps of all seeds."""
    return Table(
        f"{group.name}: gradients",
        list(_GRADIENTS),
        [[value(row) for value in _GRADIENTS.values()] for row in group.rows if row.lines],
        [
            "conflict: steps whose gradients are at more than 90 degrees; opposed: steps whose update points against a "
            "gradient; norm ratio: the longest gradient over the shortest; gain: mean length of the update over that "
            "of the plain sum, beside which differences are to be read",
        ],
        digits=2,
    )
