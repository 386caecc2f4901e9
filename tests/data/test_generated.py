import json

import pytest

from gh_downstream.data.generated import MANIFEST, claim

MADE = {"name": "toys", "arguments": {"seed": 1}}


@pytest.mark.parametrize("there", [True, False])
def test_a_new_or_an_empty_folder_gets_the_manifest(tmp_path, there):
    root = tmp_path / "toys"
    if there:
        root.mkdir()
    claim(root, "toys", MADE)
    assert json.loads((root / MANIFEST).read_text()) == MADE
    assert [path.name for path in root.iterdir()] == [MANIFEST]


def test_what_was_made_with_the_same_manifest_is_left_as_it_is(tmp_path):
    claim(tmp_path, "toys", MADE)
    (tmp_path / "a.png").write_text("drawn")
    before = (tmp_path / MANIFEST).stat().st_mtime_ns
    claim(tmp_path, "toys", MADE)
    assert (tmp_path / MANIFEST).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", "mine", r"holds something else than toys; choose a new or empty folder"),
        (MANIFEST, "{", r"manifest.json is not readable JSON"),
        (MANIFEST, "[]", r"was made with None, not with \{'seed': 1\}"),
        (
            MANIFEST,
            '{"name": "toys", "arguments": {"seed": 2}}',
            r"was made with \{'seed': 2\}, not with \{'seed': 1\}",
        ),
    ],
)
def test_what_is_something_else_is_refused_and_untouched(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        claim(tmp_path, "toys", MADE)
    assert str(tmp_path) in str(error.value)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: content}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "toys").write_text("")
    with pytest.raises(ValueError, match="something else"):
        claim(tmp_path / "toys", "toys", MADE)
