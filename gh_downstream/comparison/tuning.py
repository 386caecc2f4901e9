"""The best fixed weight and the best weighting, with one budget: chosen on half of the seeds, judged on the others."""

import math
import statistics
from collections.abc import Sequence

from gh_downstream.comparison.differences import Difference, verdicts
from gh_downstream.comparison.results import BASE, Group, Row
from gh_downstream.comparison.weightings import is_fixed
from gh_downstream.reporting import Cell, Spread, Table

SEEDS = 4
"""The fewest seeds of which two can choose and two can judge."""


def tuned_table(group: Group, margin: float = 1.0) -> Table | None:
    """Return what tuning the weight of the alignment gives, beside choosing a weighting in the same way.

    The candidates are the rows of fixed weights, the plain sum among them, and the rows of all other weightings. What
    was best on average over the first half of the seeds that all of them have is compared over the second half.

    Args:
        group: The runs.
        margin: The difference that matters, in units of the metric.

    Returns:
        None without a fixed weight, another weighting and the plain sum, or where there are fewer than :data:`SEEDS`.
    """
    base = group.base
    harmonized = [row for row in group.rows if row.scope]
    fixed = [row for row in harmonized if is_fixed(row.weighting)]
    others = [row for row in harmonized if not is_fixed(row.weighting)]
    seeds = sorted(set.intersection(*(set(row.runs) for row in harmonized))) if harmonized else []
    if base is None or len(fixed) < 2 or not others or len(seeds) < SEEDS:
        return None
    first, second = seeds[: len(seeds) // 2], seeds[len(seeds) // 2 :]
    weight, weighting = _best(fixed, first), _best(others, first)
    compared = {
        "fixed weight": (weight, base),
        "weighting": (weighting, base),
        "weighting – fixed weight": (weighting, weight),
    }
    differences = {name: _difference(*pair, second) for name, pair in compared.items() if pair[0] is not pair[1]}
    said = verdicts(differences, margin)
    rows: list[list[Cell]] = []
    for name, candidates in (("fixed weight", fixed), ("weighting", others), ("weighting – fixed weight", [])):
        chosen = compared[name][0]
        cells: list[Cell] = [name, "–", "–", math.nan]
        if candidates:
            cells[1:] = [len(candidates), chosen.name, Spread.of([chosen.runs[seed].metric for seed in second])]
        if difference := differences.get(name):
            cells += [difference.mean, str(difference), difference.detectable, said[name]]
        else:
            cells += [math.nan, "–", math.nan, "–"]
        rows.append(cells)
    return Table(
        f"{group.name}: tuned with one budget",
        ["chosen", "of", "best", group.preset.metric, "difference", "95 % interval", "detectable", "shown"],
        rows,
        [
            f"best: by the mean over seeds {first[0]} to {first[-1]}, of so many rows; all else is over seeds "
            f"{second[0]} to {second[-1]}, which chose nothing. The choice sees labels of the target, as tuning in "
            f"papers does; {BASE} is a fixed weight of 1",
            f"difference: to {BASE}, in the last row of the two; interval, detectable and shown as above",
        ],
        digits=2,
    )


def _best(rows: Sequence[Row], seeds: Sequence[int]) -> Row:
    return max(rows, key=lambda row: statistics.fmean(row.runs[seed].metric for seed in seeds))


def _difference(row: Row, base: Row, seeds: Sequence[int]) -> Difference:
    return Difference(tuple(row.runs[seed].metric - base.runs[seed].metric for seed in seeds))
