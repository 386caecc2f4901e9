"""docs/retrieval.md names what there is."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from gh_downstream.retrieval.config import RetrievalConfig
from gh_downstream.retrieval.data.config import FORMATS
from gh_downstream.retrieval.objectives import ALIGNMENTS, AlignmentTermConfig

TEXT = (Path(__file__).parents[2] / "docs" / "retrieval.md").read_text()
KEYS = {key for cell in re.findall(r"^\| (`.+?`) \|", TEXT, re.MULTILINE) for key in re.findall("`(.+?)`", cell)}
SECTIONS = ("task", "harmonization", "optimizer", "training")


def keys():
    hints = typing.get_type_hints(RetrievalConfig)
    for field in dataclasses.fields(RetrievalConfig):
        if field.name in SECTIONS:
            yield from ((field.name, inner.name) for inner in dataclasses.fields(hints[field.name]))
        elif field.name == "alignment":
            yield from (("alignment.TERM", inner.name) for inner in dataclasses.fields(AlignmentTermConfig))
        elif field.name != "output":
            yield "", field.name


@pytest.mark.parametrize("key", list(keys()), ids=".".join)
def test_every_key_of_the_configuration_is_explained(key):
    section, name = key
    # Keys of one section share a row: `optimizer.name`, `.lr`.
    assert f"{section}.{name}".lstrip(".") in KEYS or (section and f".{name}" in KEYS)


def test_every_format_and_every_term_is_named():
    for name in FORMATS:
        assert f"| `{name}` |" in TEXT
    for name in ALIGNMENTS:
        assert f"`{name}`" in TEXT
