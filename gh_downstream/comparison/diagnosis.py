"""Whether harmonization can help a training, when, and how one knows: a verdict with its reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gh_downstream.comparison import figures
from gh_downstream.comparison.conflicts import ALL, FEWEST, Batches, Lines, Updates, measured_lines, tasks_of
from gh_downstream.comparison.weightings import in_length
from gh_downstream.harmonization import Probe, parse_weighting
from gh_downstream.harmonization.words import checked_weighting
from gh_downstream.reporting import Cell, Table, fixed
from gh_downstream.reporting.html import Picture, Section, write_report

WORDS = ("gh", "gh++", "gh++:adaptive", "gh++:guard", "gh++:official", "imtlg")
"""The weightings that are tried where none are named; the last is the bisector, for two gradients."""

TURN, LENGTH, SERVED = 1.0, 0.02, 2.0
"""What counts as a change: degrees that one in ten updates turns by, a part of its length, and how many times as well
the loss is served that the plain sum serves least."""


@dataclass(frozen=True)
class Part:
    """Batches of a part of a training, and what each weighting makes of them by its word, first the plain sum."""

    title: str
    batches: Batches
    updates: Mapping[str, Updates]

    @cached_property
    def forms(self) -> Sequence[Updates]:
        """Those of which the verdict is: they turn the sum in conflict alone, and remove that."""
        exact = [x for word, x in self.updates.items() if word.startswith("gh") and "official" not in word]
        return exact or [x for word, x in self.updates.items() if word != "sum"]

    @property
    def turned(self) -> float:
        """Degrees that one in ten updates turns by at least, with the weighting that turns them most."""
        return max(float(found.turned.nanquantile(0.9)) for found in self.forms)

    @property
    def gain(self) -> float:
        """The median gain that is farthest from 1."""
        return max((float(found.gain.nanmedian()) for found in self.forms), key=lambda gain: abs(gain - 1))

    @cached_property
    def served(self) -> tuple[str, float, float]:
        """The task that the plain sum serves least, and how well: with the sum, and with the best weighting."""
        plain = self.updates["sum"].served
        least = int(plain.argmin())
        return self.batches.tasks[least], float(plain[least]), max(float(found.served[least]) for found in self.forms)

    @property
    def better(self) -> float:
        """By what part it is served better."""
        _, before, after = self.served
        return (after - before) / max(abs(before), 1e-9)

    @property
    def in_words(self) -> str:
        """How it is served."""
        task, before, after = self.served
        return f"{task} {fixed(before, 2)} → {fixed(after, 2)}"

    def rows(self) -> list[list[Cell]]:
        """Return a row for each pair of tasks and layer."""
        rows: list[list[Cell]] = []
        for (pair, layer), one in self.batches.conflicts.items():
            names = [self.title if layer == ALL else layer, *([pair] if len(self.batches.tasks) > 2 else [])]
            interval = "[{}, {}]".format(*(fixed(end, 2) for end in one.interval))
            numbers: list[Cell] = [one.angles, one.norms, one.mean, interval, one.deviation]
            shares = [f"{100 * one.rate:.0f}", f"{100 * one.noise:.0f}"]
            rows.append(
                [" · ".join(names), *numbers, *shares, self.batches.shown[pair, layer], fixed(one.part, 3, "+")]
            )
        return rows

    def reasons(self) -> list[str]:
        """Say how each two tasks conflict."""
        found, said = [], self.batches.shown
        for (pair, layer), one in self.batches.conflicts.items():
            if layer != ALL:
                continue
            text = (
                f"{self.title}, {pair}: {one.angles.mean:.0f} ± {one.angles.std:.0f} degrees, norms {one.norms}, "
                f"conflict in {100 * one.rate:.0f} %"
            )
            if said[pair, ALL] == "conflict":
                noise = f" (up to {100 * one.noise:.0f} % of it noise)" if one.noise >= 0.005 else ""
                layers = {layer: what for (other, layer), what in said.items() if other == pair and layer != ALL}
                inside = [layer for layer, what in layers.items() if what == "conflict"]
                where = f", in {', '.join(inside)}" if 0 < len(inside) < len(layers) else ""
                text += f"{noise}: on average real{where}"
            elif said[pair, ALL] == "agreement":
                text += ": on average they agree"
            else:
                text += f": no more than noise (a mean cosine of {one.detectable:.2f} would have shown)"
            found.append(f"{text}; the plain sum opposes a loss in {self.updates['sum'].opposed:.0f} %.")
        return found


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a training.

    Attributes:
        parts: Thirds of the training by its log, as far as they hold enough, and in the end what was measured, or
            without that all of the log.
        lines: The log.
        left_out: What is said of thirds that hold too little.
    """

    parts: Sequence[Part]
    lines: Lines
    left_out: Sequence[str] = ()

    def verdict(self) -> list[str]:
        """Say in plain words whether harmonization can change this training, and on what grounds."""
        turned = max(part.turned for part in self.parts)
        gain = max((part.gain for part in self.parts), key=lambda gain: abs(gain - 1))
        changed = [part for part in self.parts if part.turned >= TURN and part.better >= SERVED - 1]
        if turned < TURN and abs(gain - 1) < LENGTH:
            head = (
                f"Harmonization cannot change this training: nine of ten updates turn by {turned:.1f} degrees "
                f"at most with any form of GH, and their length stays within {100 * LENGTH:.0f} %."
            )
        elif not changed:
            length = f" but the length of the step, {gain:.2f} times that of the sum, as a learning rate does"
            most = max(self.parts, key=lambda part: part.better)
            head = (
                f"Harmonization can change little here{length if abs(gain - 1) >= LENGTH else ''}: the loss that the "
                f"plain sum serves least is served less than twice as well ({most.in_words}), with one in ten "
                f"updates turned by {turned:.1f} degrees."
            )
        else:
            real = any(what == "conflict" for part in changed for key, what in part.batches.shown.items() if ALL in key)
            head = "Harmonization may change this training: the conflict is real, and"
            if not real:
                head = (
                    "Harmonization would weigh the weaker loss up where noise is against it, so compare with fixed "
                    "weights: no conflict is shown beyond noise, but"
                )
            head += (
                " the loss that the plain sum serves least is served better with it "
                f"({'; '.join(f'{part.title}: {part.in_words}' for part in changed)}). Whether that helps, only runs "
                "tell: gh-downstream compare, over seeds."
            )
        return [head, *(reason for part in self.parts for reason in part.reasons()), *self.left_out]

    def tables(self) -> list[Table]:
        """Return the numbers: how the losses conflict, and what weightings change."""
        columns = "batches,angle,norms,mean cosine,interval,scatter,conflict %,maybe noise %,shown,part"
        notes = [
            "interval: 95 %, of the mean cosine (Student's t); scatter: of the batches, in the log of the course too",
            "maybe noise: share of the conflicts that noise around a right angle makes as well as acute angles",
            "shown: which side of zero the mean is on, corrected for their number (Holm); "
            "part: of a layer in the mean cosine of the whole",
        ]
        rows = [row for part in self.parts for row in part.rows()]
        conflict = Table("Conflict and noise", columns.split(","), rows, notes=notes, digits=2)
        tasks = self.parts[-1].batches.tasks
        along = [f"along {task}" for task in tasks]
        notes = [
            "turned: angle between update and plain sum, median, and what one in ten exceeds; gain: length over that "
            "of the plain sum, median; opposed: updates that point against a loss",
            "along: mean cosine of update and gradient: how well a step of given length serves the loss",
            f"cost: {len(tasks)} backward passes over what the losses share in place of one, which gh-downstream "
            "benchmark measures",
        ]
        if "imtlg" in self.parts[-1].updates:
            notes.append("imtlg: TorchJD's IMTL-G, which for two losses is the bisector of their gradients")
        rows = [
            [f"{part.title}: {word}", *found.numbers()] for part in self.parts for word, found in part.updates.items()
        ]
        columns = "weighting,turned °,one in ten °,gain,opposed %,largest weight"
        return [conflict, Table("What weightings change", [*columns.split(","), *along], rows, notes=notes, digits=2)]

    def write(self, path: str | Path, title: str) -> None:
        """Write a report as one HTML file."""
        conflict, changes = self.tables()
        last = self.parts[-1]
        cosines = Picture(figures.cosine_figure(last.batches.conflicts, last.batches.shown), last.title + _COSINES)
        sections = [
            Section("Verdict", self.verdict()),
            Section("Conflict and noise", [cosines, conflict]),
            Section("What weightings change", [changes]),
        ]
        if self.lines:
            course = Picture(figures.course_figure(self.lines, tasks_of(self.lines)), _COURSE)
            sections.append(Section("Over the training", [course]))
        write_report(path, title, sections)


_COSINES = (
    ": cosine of the gradients, a dot for each batch, and its mean with the 95 % interval; red where conflict is "
    "shown, blue where agreement is, grey where the mean cannot be told from zero."
)
_COURSE = "What the training logged: largest angle between two gradients, and norms; thick their running median."


def diagnose(
    probe: Probe | None = None,
    lines: Lines = (),
    weightings: Sequence[str] = (),
    log_every: str = "training.log_every",
) -> Diagnosis:
    """Diagnose a training.

    Args:
        probe: One that has measured batches; None for the log alone.
        lines: What the training has logged.
        weightings: Words of what is tried; without any the forms of GH, as far as there are for so many tasks, and
            where TorchJD is installed the bisector of the gradients.
        log_every: The key that says how often the training logs.

    Raises:
        ValueError: There is too little to judge by, or a word is unknown.
        ImportError: A weighting is one of TorchJD, which is not installed.
    """
    lines = measured_lines(lines)
    thirds: dict[str, list[Mapping[str, float]]] = {title: [] for title in figures.THIRDS}
    for line in lines:
        thirds[figures.THIRDS[min(int(3 * (line["step"] - 1) / lines[-1]["step"]), 2)]].append(line)
    found = {title: Batches.of_log(part) for title, part in thirds.items() if len(part) >= FEWEST}
    short = [f"{title}: {len(part)}" for title, part in thirds.items() if lines and len(part) < FEWEST]
    cure = f"To see them, log more often ({log_every})."
    left_out = [f"Left out, with fewer than {FEWEST} logged steps: {'; '.join(short)}. {cure}"]
    if probe is not None:
        found["last weights"] = Batches.of_probe(probe)
    elif 0 < len(lines) < FEWEST:
        raise ValueError(
            f"too few logged steps with measured gradients to judge by: {len(lines)}, and {FEWEST} are the least. Log "
            f"more often ({log_every}), or measure batches (--batches 32)"
        )
    elif lines:
        found["all logged steps"] = Batches.of_log(lines)
    else:
        raise ValueError("the log has no cosines of each two tasks: measure batches")
    cap = getattr(getattr(probe, "weighting", None), "max_weight", None)
    parts = [Part(title, batches, _tried(batches, weightings, cap)) for title, batches in found.items()]
    return Diagnosis(parts, lines, left_out if short else [])


def _tried(batches: Batches, weightings: Sequence[str], max_weight: float | None) -> dict[str, Updates]:
    found = {"sum": Updates.of(parse_weighting("sum"), batches)}
    for word in weightings or WORDS:
        try:
            weighting = parse_weighting(in_length(word, "tasks"), max_weight)
            found[word] = Updates.of(checked_weighting(weighting, len(batches.tasks)), batches)
        except (ImportError, ValueError):
            if weightings:
                raise
    return found
