from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest

from gh_downstream.files import write_atomically
from gh_downstream.reporting import Spread, Table, escape_markdown

TABLE = Table(
    "AP on fog [beta 0.02]",
    ["model", "person", "traffic|light"],
    [["adapted + GH++", 12.345, Spread.of([1.0, 2.0, 3.0])], ["a|b * <c>", math.nan, 3], ["zero", -0.01, 0.0]],
    header=["data set: street_foggy_val", "configuration: [red]3f2a"],
    notes=["one run"],
)


def cells_of(line: str) -> list[str]:
    """Split a Markdown table line at its unescaped pipes, as GitHub does."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_spread_is_the_sample_standard_deviation() -> None:
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(2.0, 1.0, 3)
    assert math.isnan(Spread.of([math.nan, math.nan]).mean)
    with pytest.raises(ValueError, match="at least two"):
        Spread.of([1.0])


def test_cells_are_rounded_once_and_never_minus_zero() -> None:
    assert TABLE.formatted_rows() == [
        ["adapted + GH++", "12.3", "2.0 ± 1.0"],
        ["a|b * <c>", "–", "3"],
        ["zero", "0.0", "0.0"],
    ]


def test_a_row_of_the_wrong_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="'AP': a row of 1 cells for 2 columns"):
        Table("AP", ["model", "AP"], [["adapted"]])


def test_text_holds_everything_and_reads_no_markup() -> None:
    text = TABLE.to_text()
    for part in (TABLE.title, *TABLE.header, *TABLE.notes, *TABLE.columns, "12.3", "2.0 ± 1.0", "a|b * <c>"):
        assert part in text


def test_text_folds_to_the_terminal_and_loses_nothing() -> None:
    names = [f"traffic_light_{index}" for index in range(9)]
    table = Table("AP", ["model", *names], [["adapted + GH++", *[100.0] * 8, Spread.of([19.0, 21.0])]])
    text = table.to_text(width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("100.0") == 8
    assert "20.0" in text
    assert "±" in text
    assert "…" not in text
    assert "adapted" in text
    letters = "".join(text.split())
    assert all(letters.count(letter) >= "".join(names).count(letter) for letter in "trafcligh_")


def test_a_terminal_that_is_too_narrow_gets_a_wider_table_and_no_cut_number() -> None:
    table = Table("AP", ["model", *"abcdefgh"], [["adapted", *[100.0] * 8]])
    assert table.to_text(width=20).count("100.0") == 8


def test_a_table_without_rows_has_its_columns() -> None:
    table = Table("AP", ["model", "car"], [])
    for text in (table.to_text(), table.to_text(width=40), table.to_markdown()):
        assert "model" in text
        assert "car" in text
    assert table.as_dict()["rows"] == []


def test_show_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    TABLE.show()
    assert capsys.readouterr().out == TABLE.to_text()


def test_markdown_has_a_cell_for_each_column_whatever_the_text() -> None:
    lines = [line for line in TABLE.to_markdown().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(TABLE.rows)
    assert {len(cells_of(line)) for line in lines} == {3}
    assert cells_of(lines[3])[0] == r"a\|b \* \<c>"
    assert cells_of(lines[0])[2] == r"traffic\|light"


def test_a_line_break_does_not_end_a_markdown_row() -> None:
    table = Table("t", ["model"], [["two\nlines"]])
    assert "| two lines |" in table.to_markdown()


def test_json_is_valid_and_unrounded(tmp_path: Path) -> None:
    TABLE.write(tmp_path / "new", "table")
    read = json.loads((tmp_path / "new" / "table.json").read_text(), parse_constant=pytest.fail)
    assert read == TABLE.as_dict()
    assert read["rows"][0] == ["adapted + GH++", 12.345, {"mean": 2.0, "std": 1.0, "runs": 3}]
    assert read["rows"][1][1] is None


def test_markdown_file_is_the_markdown(tmp_path: Path) -> None:
    TABLE.write(tmp_path, "table")
    assert (tmp_path / "table.md").read_text() == TABLE.to_markdown()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "lone surrogate \ud800")
    occupied = tmp_path / "folder"
    occupied.mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(occupied, "new")
    assert path.read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "table.json"]
    write_atomically(path, b"new")
    assert path.read_text() == "new"


def test_without_rich_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match=r"pip install 'gh_downstream\[training\]'"):
        TABLE.to_text()
    assert TABLE.to_markdown()


@pytest.mark.parametrize(
    "text", ["![x](http://x.y/z)", "[x](javascript:y)", "[x]: z", "a|b", "<b>", "&lt;", "`x`", "*x*", "_x_"]
)
def test_markdown_shows_a_text_as_it_is(text):
    escaped = escape_markdown(f"a\n{text}")
    assert escaped.startswith("a ")
    assert re.sub(r"\\(?=[^\w\s]|_)", "", escaped) == f"a {text}"
    assert not re.search(r"(?<!\\)[|<&`*]|(?<!\\)\][(:]|(?<!\\)_", escaped)


def test_an_interval_stays_readable():
    assert escape_markdown("[-1.00, 2.00] *") == r"[-1.00, 2.00] \*"
    assert escape_markdown("-1.00 of source_train") == "-1.00 of source_train"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("# a", r"\# a"), ("## a", r"#\# a"), ("- a", r"\- a"), ("1. a", r"1\. a"), ("---", r"--\-"), (">a", r"\>a")],
)
def test_markdown_begins_nothing_with_a_text(text, escaped):
    assert escape_markdown(text) == escaped


def test_names_do_not_command_a_terminal_or_a_page():
    table = Table("t\x1b[2J", ["c\x1b[2J", "d"], [["r\x1b[2J", 1.0]], ["h\x1b[2J"], ["n\x1b[2J"])
    for shown in (table.to_text(), table.to_markdown()):
        assert "\x1b" not in shown
        assert all(name + "\\x1b" in shown.replace("\\\\", "\\") for name in "tcrhn")
