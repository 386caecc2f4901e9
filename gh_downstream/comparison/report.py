"""The report of a comparison or a demo: tables, figures and the controlled problems, in HTML and in Markdown."""

import json
import pkgutil
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gh_downstream.comparison import figures
from gh_downstream.comparison.atlas import ANGLES, RATIOS, SAME, UP_TO, Charted, chart, families
from gh_downstream.comparison.controlled import TwoQuadratics, descend, opposing_share, remaining_conflict
from gh_downstream.comparison.results import BASE, Group, gradient_table, metric_table, read_comparison
from gh_downstream.comparison.runs import Comparison, Run
from gh_downstream.comparison.tuning import tuned_table
from gh_downstream.comparison.weightings import in_length, lambda_of
from gh_downstream.files import write_atomically
from gh_downstream.harmonization import parse_weighting
from gh_downstream.harmonization.checks import takes_losses
from gh_downstream.reporting import Cell, Table, escape_markdown
from gh_downstream.reporting.html import Picture, Section, write_report

ANGLE, NORM_RATIO, STEPS, RATE = 120.0, 4.0, 400, 0.005
"""The controlled problem that is drawn: angle in degrees and ratio of the norms at the start; steps and their rate."""

CELLS = 24
"""Angles, and ratios of norms, in the maps of remaining conflict."""

USUAL = ("sum", "gh", "gh++", "gh++:adaptive", "gh++:guard", "gh++:official")
"""The weightings of the controlled problems, before others that are compared."""


def write_comparison(comparison: Comparison, failed: Mapping[Run, str]) -> list[Table]:
    """Write what is finished of a comparison: ``report.html``, ``report.md`` with its ``figures``, ``tables.json``.

    Args:
        comparison: What was trained.
        failed: What :func:`~gh_downstream.comparison.runs.train_all` returned.

    Returns:
        The tables that show a comparison in short: the first ones of each preset and method.
    """
    groups = read_comparison(comparison)
    sections = [_section(group, failed, comparison) for group in groups]
    if swept := [group for group in groups if len(figures.lambda_points(group)) > 2]:
        caption = (
            "Exact GH++ over lambda: mean over the seeds with a band of their sample standard deviation; dashed the "
            "plain sum, with the same band."
        )
        sections.append(Section("Sensitivity to lambda", [Picture(figures.lambda_figure(swept), caption)]))
    sections.append(controlled_section(comparison))
    title = f"Gradient Harmonization: {', '.join(preset.name for preset in comparison.presets)}"
    write_report(comparison.output / "report.html", title, sections)
    _write_markdown(comparison.output, title, sections)
    tables = [[block for block in section.content if isinstance(block, Table)] for section in sections]
    content = [table.as_dict() for of_section in tables for table in of_section]
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(comparison.output / "tables.json", text + "\n")
    return [table for of_group in tables[: len(groups)] for table in of_group[:3]]


_HOW_TO_READ = (
    "Every weighting of a seed sees the same data in the same order from the same initial weights. Differences are "
    "paired over seeds. Read each beside the gain: where two gradients are of one length, GH, exact GH++ and the plain "
    "sum differ in the length of the step alone."
)
_THE_SAME = (
    "For two tasks GH, PCGrad and twice UPGrad are the same update up to rounding, so how far their rows are apart is "
    "what rounding alone can do."
)


def _section(group: Group, failed: Mapping[Run, str], comparison: Comparison) -> Section:
    runs = [run for row in group.rows for run in row.runs.values()]
    measured = [row for row in group.rows if row.lines]
    table = metric_table(group, failed, comparison.length, comparison.margin)
    the_same = [_THE_SAME] if len({"gh", "pcgrad", "upgrad"} & {row.weighting for row in group.rows}) > 1 else []
    content: list[str | Table | Picture] = [*group.preset.paragraphs, _HOW_TO_READ, *the_same, table]
    if (tuned := tuned_table(group, comparison.margin)) is not None:
        content.append(tuned)
    if measured:
        content.append(gradient_table(group))
    if group.rows and group.preset.report_content is not None:
        content += pkgutil.resolve_name(group.preset.report_content)(group)
    if any(len(run.series(group.preset.metric)[0]) > 1 for run in runs):
        content.append(Picture(figures.metric_figure(group), _METRIC))
    if measured:
        content.append(Picture(figures.angle_figure(group), _ANGLES))
    if any(row.weighting != BASE for row in measured):
        content.append(Picture(figures.weight_figure(group), _WEIGHTS))
    return Section(group.name, content)


_METRIC = (
    "Mean over the seeds after so many steps, with a band of their sample standard deviation. Lines that lie under "
    "others are thicker; scope all is dashed."
)
_ANGLES = (
    "Angles between the gradients over the logged steps of all seeds: how many of the steps are at more than an angle. "
    "To the right of the dotted line the gradients are in conflict; at it a line stands at the share of such steps. "
    "Scope all is dashed."
)
_WEIGHTS = (
    "Weights of the losses: thin those of the first seed, thick the running median, its mean over seeds with a band "
    "of their sample standard deviation. Where the largest is over 10 the scale is logarithmic beyond 1."
)


def controlled_section(comparison: Comparison) -> Section:
    """Return the section on two convex losses in the plane, with the weightings of a comparison."""
    names = [*USUAL, *(name for name in comparison.weightings if name not in USUAL and lambda_of(name) is None)]
    found = {name: parse_weighting(in_length(name, comparison.length)) for name in names}
    weightings = {name: weighting for name, weighting in found.items() if not takes_losses(weighting)}
    problem = TwoQuadratics.at(ANGLE, NORM_RATIO)
    paths = {name: descend(problem, weighting, STEPS, RATE) for name, weighting in weightings.items()}
    angles = [90 + 90 * (k + 0.5) / CELLS for k in range(CELLS)]
    ratios = [10 ** (-1 + 2 * (k + 0.5) / CELLS) for k in range(CELLS)]
    maps = {name: remaining_conflict(weighting, angles, ratios) for name, weighting in weightings.items()}
    table = Table(
        "Where a task is opposed",
        ["weighting", "share of angles and ratios %", "smallest cosine", "distance to the front at the end"],
        [
            [name, 100 * opposing_share(of), float(of.min()), float(problem.distance_to_front(paths[name][-1]))]
            for name, of in maps.items()
        ],
        [
            "angles from 90° to 180° and norm ratios from 0.1 to 10 on a logarithmic scale, each as likely; smallest "
            f"cosine: of the update and a gradient; the end: after {STEPS} steps from {ANGLE:g}° and a ratio of "
            f"{NORM_RATIO:g}"
        ],
        digits=3,
    )
    charts = {name: chart(weighting) for name, weighting in weightings.items()}
    atlas = Table(
        "Where updates point",
        ["weighting", "direction of", "turned from the sum by up to", "gain", "opposed %"],
        [[name, family[0], *_charted(charts, name)] for family in families(charts) for name in family],
        [
            f"gradients at {ANGLES[0]:g}° to {ANGLES[-1]:g}°, the first {RATIOS[0]:g} to {RATIOS[-1]:g} times as long; "
            f"direction of: the first weighting whose update is within {SAME:g}° of it wherever the gradients are at "
            f"{UP_TO:g}° at most; gain: smallest and largest length over that of the plain sum"
        ],
    )
    return Section(
        "Two convex losses in the plane",
        [
            "The mechanism alone: two losses of the squared distance from a minimum each, whose gradients at the start "
            f"stand at {ANGLE:g} degrees with a ratio of norms of {NORM_RATIO:g}. Neither can be lowered without "
            "raising the other on the segment between the minima, the Pareto front. No training is in this section.",
            Picture(
                figures.path_figure(problem, paths),
                "Paths of gradient descent, all with the same rate, from the square to the dot, and in grey that of "
                "the plain sum. Stars are the minima, the first on the left; the grey bar is the Pareto front.",
            ),
            Picture(
                figures.distance_figure(problem, paths),
                "Distance to the Pareto front (mean over 10 steps) and losses over the steps. Exact GH++ keeps the "
                "length of its update near the front, and so steps to and fro across it.",
            ),
            table,
            atlas,
            Picture(
                figures.atlas_figure(charts),
                "Above: direction of the updates, in degrees from the second gradient towards the first; in the grey "
                "they oppose neither. Below: their length over that of the plain sum. Weightings of one direction "
                "share a line above, and a colour below.",
            ),
            Picture(
                figures.conflict_figure(maps, angles, ratios),
                "Cosine of the angle between the update and the gradient that it serves less, by angle and ratio of "
                "the norms: red where that task is opposed, the line where this begins.",
            ),
        ],
    )


def _charted(charts: Mapping[str, Charted], name: str) -> list[Cell]:
    charted = charts[name]
    turned = charted.turned_from(charts[BASE]).nan_to_num().max()
    gains = f"{float(charted.gain.min()):.2f} to {float(charted.gain.max()):.2f}"
    return [float(turned), gains, 100 * float(charted.opposes.double().mean())]


def _write_markdown(output: Path, title: str, sections: Sequence[Section]) -> None:
    blocks = [f"# {escape_markdown(title)}"]
    for section in sections:
        blocks.append(f"## {escape_markdown(section.heading)}")
        for number, block in enumerate(section.content):
            if isinstance(block, Table):
                blocks.append(block.to_markdown().rstrip())
            elif isinstance(block, Picture):
                name = re.sub(r"[^a-z0-9]+", "-", f"{section.heading} {number}".lower()).strip("-") + ".png"
                write_atomically(output / "figures" / name, block.to_png())
                caption = escape_markdown(block.caption)
                blocks.append(f"![{caption}](figures/{name})\n\n{caption}")
            else:
                blocks.append("\n".join(map(escape_markdown, block.split("\n"))))
    write_atomically(output / "report.md", "\n\n".join(blocks) + "\n")
