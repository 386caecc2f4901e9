"""What the numbers of a comparison say, in a paragraph for each task and baseline, and what they do not say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from gh_downstream.comparison.results import BASE, Difference, Group, Row
from gh_downstream.comparison.weightings import SAME_UPDATE

_CHANCE = 0.05


def findings(groups: Sequence[Group], length: str = "tasks") -> list[str]:
    """Return a paragraph for each task and baseline, and one on all comparisons together.

    Args:
        groups: The results.
        length: ``harmonization.length`` of the comparison.
    """
    compared = [difference for group in groups for _, difference in _differences(group)]
    paragraphs = [_paragraph(group, length) for group in groups if group.rows]
    with_interval = [difference for difference in compared if math.isfinite(difference.half)]
    if with_interval:
        paragraphs.append(_on_chance(len(with_interval), sum(d.excludes_zero for d in with_interval)))
    return paragraphs


def _differences(group: Group) -> list[tuple[Row, Difference]]:
    """The weightings of a group with their differences to the plain sum."""
    pairs = [(row, group.difference(row)) for row in group.rows if row.scope != "–"]
    return [(row, difference) for row, difference in pairs if difference is not None]


def _paragraph(group: Group, length: str) -> str:
    sentences = [f"{group.name}."]
    base = group.base
    if base is None:
        return " ".join([*sentences, f"There is no finished run of {BASE}, with which the others could be compared."])
    seeds = _seeds(len(base.runs))
    spread = f" ± {statistics.stdev(base.values):.2f}" if len(base.runs) > 1 else ""
    sentences.append(f"{group.metric} of the plain sum is {statistics.fmean(base.values):.2f}{spread} over {seeds}.")
    sentences += [*_on_differences(_differences(group)), *_on_source_only(group)]
    sentences += [*_on_same_updates(group), *_on_gradients(group, base, length)]
    return " ".join(sentences)


def _on_differences(differences: Sequence[tuple[Row, Difference]]) -> list[str]:
    if not differences:
        return ["No other weighting has a finished run of the same seed."]
    single = [row.name for row, difference in differences if not math.isfinite(difference.half)]
    clear = [(row, d) for row, d in differences if math.isfinite(d.half) and d.excludes_zero]
    unclear = [(row, d) for row, d in differences if math.isfinite(d.half) and not d.excludes_zero]
    sentences = []
    for better in (True, False):
        chosen = [_signed(row, d) for row, d in clear if (d.mean > 0) == better]
        if chosen:
            word = "better" if better else "worse"
            sentences.append(
                f"The 95 % interval of the difference leaves out 0 for {_count(chosen)} that "
                f"{'is' if len(chosen) == 1 else 'are'} {word} than it: {_listed(chosen)}."
            )
    if unclear:
        chosen = [_signed(row, d) for row, d in unclear]
        sentences.append(
            f"It holds 0 for {_count(chosen)}, whose difference these seeds do not tell from none: {_listed(chosen)}."
            if clear
            else f"The 95 % interval of the difference holds 0 for {_count(chosen)}, so that these seeds tell no "
            f"difference to it from none: {_listed(chosen)}."
        )
    if single:
        sentences.append(f"One seed has no spread: nothing can be said about the difference of {_listed(single)}.")
    return sentences


def _on_source_only(group: Group) -> list[str]:
    for row in group.rows:
        difference = group.difference(row) if row.scope == "–" else None
        if difference is not None:
            side = "below" if difference.mean < 0 else "above"
            interval = "" if math.isnan(difference.half) else f" {_interval(difference)}"
            return [f"Source-only is {abs(difference.mean):.2f} {side} the plain sum{interval}."]
    return []


def _on_same_updates(group: Group) -> list[str]:
    sentences = []
    for family in SAME_UPDATE:
        for scope in dict.fromkeys(row.scope for row in group.rows):
            same = [row for row in group.rows if row.weighting in family and row.scope == scope]
            if len(same) < 2 or not _two_tasks(same):
                continue
            common = set.intersection(*(set(row.runs) for row in same))
            gaps = [
                max(row.runs[seed].metric for row in same) - min(row.runs[seed].metric for row in same)
                for seed in common
            ]
            apart = f" For a seed they end up to {max(gaps):.2f} apart: so much can come from that." if gaps else ""
            upgrad = any(row.weighting == "upgrad" for row in same)
            theirs = " and, for upgrad, what TorchJD adds to the Gramian" if upgrad else ""
            names = _listed([row.name for row in same])
            cap = ", as long as no max_weight binds" if family[0] == "gh" else ""
            sentences.append(f"{names} are the same update of two tasks up to rounding{theirs}{cap}.{apart}")
    return sentences


def _on_gradients(group: Group, base: Row, length: str) -> list[str]:
    sentences = []
    if base.lines:
        ratio = (
            ""
            if math.isnan(base.norm_ratio)
            else (f", and the longest gradient was {base.norm_ratio:.3g} times as long as the shortest (median)")
        )
        sentences.append(
            f"In the runs of the plain sum {100 * base.mean('gh/conflict_rate'):.1f} % of the steps were in conflict, "
            f"with a mean cosine of {round(base.mean('gh/cosine'), 2) + 0.0:.2f}{ratio}."
        )
    others = [row for row in group.rows if row is not base and row.lines]
    gains = {row.name: row.mean("gh/gain") for row in others if math.isfinite(row.mean("gh/gain"))}
    if gains and length != "sum":
        sentences.append(
            f"The updates were so many times as long as the plain sum, in the mean: {_figures(gains, '{:.2f}')}."
        )
        longer = [name for name, gain in gains.items() if abs(gain - 1) > 0.05]
        if longer:
            whose = "All of these differ" if len(longer) == len(gains) > 1 else f"That of {_listed(longer)} differs"
            sentences.append(
                f"{whose} from 1 by more than 0.05, so that a difference of the metric can come from the length of the "
                "steps; --normalize compares the directions alone."
            )
    opposed = {row.name: 100 * row.mean("gh/opposed") for row in [base, *others] if row.mean("gh/opposed") > 0}
    if opposed:
        sentences.append(
            f"The update opposed a task in this share of the logged steps: {_figures(opposed, '{:.1f} %')}."
        )
    heavy = [f"{row.name} {row.largest_weight:.3g}" for row in others if row.largest_weight > 10]
    if heavy:
        sentences.append(f"The largest weight was over 10 for {_listed(heavy)}.")
    return sentences


def _on_chance(comparisons: int, outside: int) -> str:
    expected = _CHANCE * comparisons
    looked = "difference was" if comparisons == 1 else "differences were"
    return (
        f"All together {comparisons} {looked} looked at, of which {outside} {'has' if outside == 1 else 'have'} a 95 % "
        f"interval without 0. Were there no differences at all, about {expected:.2g} would be expected to have one by "
        "chance, as each has a chance of 5 %. The comparisons share their seeds and are not independent, and the "
        "intervals are not widened for their number."
    )


def _two_tasks(rows: Sequence[Row]) -> bool:
    return all(sum(key.startswith("gh/weight/") for key in line) == 2 for row in rows for line in row.lines[:1])


def _signed(row: Row, difference: Difference) -> str:
    return f"{row.name} {difference.mean:+.2f} {_interval(difference)}"


def _interval(difference: Difference) -> str:
    return f"[{difference.low:.2f}, {difference.high:.2f}]"


def _count(items: Sequence[str]) -> str:
    return "one weighting" if len(items) == 1 else f"{len(items)} weightings"


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _figures(values: Mapping[str, float], form: str) -> str:
    """The value of each name; of many the smallest and the largest."""
    if len(values) <= 10:
        return _listed([f"{name} {form.format(value)}" for name, value in values.items()])
    least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    return f"from {form.format(values[least])} ({least}) to {form.format(values[most])} ({most})"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
