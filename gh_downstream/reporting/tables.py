"""One table for the terminal, Markdown and JSON."""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from gh_downstream.data.paths import printable
from gh_downstream.files import write_atomically

R = TypeVar("R")


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (divided by ``runs - 1``) of one number over two or more runs."""

    mean: float
    std: float
    runs: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarize values; not a number where one is not, and a ``ValueError`` for fewer than two."""
        values = list(values)
        if len(values) < 2:
            raise ValueError(f"a spread needs at least two values, got {len(values)}")
        if not all(math.isfinite(value) for value in values):
            return cls(math.nan, math.nan, len(values))
        return cls(statistics.fmean(values), statistics.stdev(values), len(values))


Cell = str | int | float | Spread
"""Content of one cell of a table; a number that is not finite prints as a dash and is ``null`` in JSON."""


@dataclass(frozen=True)
class Table:
    """A table with what a reader needs to judge it: header lines above, notes below.

    Args:
        title: One line.
        columns: Names of the columns.
        rows: One sequence of cells for each row, as long as ``columns``. The first cell names the row.
        header: Lines between the title and the columns: what was measured, on what, by which convention.
        notes: Lines below the rows.
        digits: Decimal places of floating-point cells.

    Raises:
        ValueError: A row is not as long as ``columns``.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    header: Sequence[str] = ()
    notes: Sequence[str] = ()
    digits: int = 1

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                sizes = f"{len(row)} cells for {len(self.columns)} columns"
                raise ValueError(f"table {self.title!r}: a row of {sizes}: {row}")

    def format_cell(self, cell: Cell) -> str:
        """Return a cell as it is printed."""
        if isinstance(cell, str | int):
            return str(cell)
        numbers = [cell.mean, cell.std] if isinstance(cell, Spread) else [cell]
        if not math.isfinite(numbers[0]):
            return "–"
        return " ± ".join(fixed(number, self.digits) for number in numbers)

    def formatted_rows(self) -> list[list[str]]:
        """Return all rows as they are printed."""
        return [[self.format_cell(cell) for cell in row] for row in self.rows]

    def to_text(self, width: int | None = None) -> str:
        """Render the table for a terminal of a width, to which cells are folded as far as no number is cut.

        Raises:
            ImportError: rich is not installed.
        """
        try:
            from rich import box
            from rich.console import Console
            from rich.table import Table as RichTable
            from rich.text import Text
        except ImportError as error:
            raise ImportError("printing tables needs rich: pip install 'gh_downstream[training]'") from error

        # Names may be cut anywhere, a number only between mean and spread.
        rows = [[*map(printable, row)] for row in self.formatted_rows()]
        words = [" ".join(row[index] for row in rows).split() for index in range(len(self.columns))]
        longest_words = [max(map(len, of_column), default=1) for of_column in words]
        least = sum(longest_words) + 2 * len(longest_words)
        grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
        for name, word in zip(self.columns, longest_words, strict=True):
            grid.add_column(Text(printable(name)), justify="right", overflow="fold", min_width=word)
        grid.columns[0].justify = "left"
        for row in rows:
            grid.add_row(*map(Text, row))
        width = width or 10_000
        console = Console(width=max(width, least), color_system=None, force_terminal=False)
        if console.measure(grid, options=console.options.update(width=10_000)).maximum > width:
            grid.columns[0].width = longest_words[0]
        with console.capture() as capture:
            for line in (self.title, *self.header):
                console.print(Text(printable(line)), width=width)
            console.print(grid)
            for line in self.notes:
                console.print(Text(printable(line)), width=width)
        return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"

    def show(self) -> None:
        """Print the table on standard output, folded to the terminal's width where that is a terminal."""
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(self.to_text(width), end="")

    def to_markdown(self) -> str:
        """Render the table as Markdown (GitHub's), its title in bold and header lines and notes as lists."""
        names, *rows = ([escape_markdown(cell) for cell in row] for row in (self.columns, *self.formatted_rows()))
        rules = [":---", *["---:"] * (len(names) - 1)]
        grid = "\n".join(f"| {' | '.join(cells)} |" for cells in [names, rules, *rows])
        header, notes = ("\n".join(f"- {escape_markdown(x)}" for x in lines) for lines in (self.header, self.notes))
        blocks = [f"**{escape_markdown(self.title)}**", header, grid, notes]
        return "\n\n".join(block for block in blocks if block) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Return the table for JSON: a spread as ``{"mean", "std", "runs"}``, numbers unrounded."""
        return {
            "title": self.title,
            "header": list(self.header),
            "columns": list(self.columns),
            "rows": [[_for_json(cell) for cell in row] for row in self.rows],
            "notes": list(self.notes),
        }

    def write(self, folder: Path, name: str) -> None:
        """Write the table as ``NAME.json`` and ``NAME.md`` into a folder, atomically."""
        content = json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(folder / f"{name}.json", content + "\n")
        write_atomically(folder / f"{name}.md", self.to_markdown())


def fixed(number: float, digits: int, sign: str = "") -> str:
    """Return a number with so many decimal places, and a ``sign`` of ``+`` where it is asked for; -0.0 is 0.0."""
    return f"{round(number, digits) + 0.0:{sign}.{digits}f}"


def escape_markdown(text: str) -> str:
    """Return a text as one line in which Markdown sees no markup, link, entity or end of a cell.

    Lines that it may begin are escaped too: those of lists, headings and quotations, and rules.
    """
    line = printable(" ".join(text.split()))
    # An underscore between letters is none to Markdown.
    line = re.sub(r"[\\|*`<&~]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)
    return re.sub(r"^(\d{0,9}[#+=.)-]*)([#+=.)-](?:\s|$)|>)", r"\1\\\2", line)


def _for_json(cell: Cell) -> Any:
    if isinstance(cell, Spread):
        return {"mean": _for_json(cell.mean), "std": _for_json(cell.std), "runs": cell.runs}
    if isinstance(cell, float) and not math.isfinite(cell):
        return None
    return cell


def comparable_runs(
    rows: Mapping[str, R | Sequence[R]],
    kind: type[R],
    table: str,
    identity: Callable[[R], object],
    describe: Callable[[R], str],
) -> dict[str, list[R]]:
    """Return the runs (seeds) of each row of a table, if all of them are on the same data.

    Args:
        rows: Results of a ``kind`` by the name of the model or method, one or a sequence of them.
        kind: Class of a result.
        table: What the table is called in errors.
        identity: Returns what has to be equal of two results.
        describe: Says in words what data a result is on.

    Raises:
        ValueError: There is no row, a row has no result, or two results are on different data.
    """
    runs = {name: [row] if isinstance(row, kind) else list(cast(Sequence[R], row)) for name, row in rows.items()}
    if not runs:
        raise ValueError(f"the {table} has no rows")
    if empty := [name for name, results in runs.items() if not results]:
        raise ValueError(f"the {table} has no result for {empty[0]!r}")
    (first_name, first), *others = ((name, result) for name, results in runs.items() for result in results)
    for name, result in others:
        if identity(result) != identity(first):
            raise ValueError(
                f"results of different data sets cannot share a table: {first_name!r} is on "
                f"{describe(first)}, {name!r} is on {describe(result)}"
            )
    return runs
