"""The packaged configurations, by name."""

from pathlib import Path

import pytest

from gh_downstream.training import ConfigError
from gh_downstream.training.configs import FOLDER, find_config, list_configs
from gh_downstream.training.layers import read_layers


def test_every_file_is_found_by_its_name():
    names = list_configs()
    assert names == sorted(names)
    assert {find_config(name) for name in names} == set(FOLDER.rglob("*.yaml"))
    assert all(find_config(f"{name}.yaml") == find_config(name) for name in names[:3])


def test_a_file_of_the_user_s_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = list_configs()[0]
    own = Path(f"{name}.yaml")
    own.parent.mkdir(parents=True)
    own.write_text("output: out\n")
    assert find_config(str(own)) == own
    assert find_config(name).parent.parent == FOLDER


def test_what_is_not_there_is_named_with_what_is_like_it():
    with pytest.raises(FileNotFoundError, match=r"classification/ofice31: .*classification/office31"):
        find_config("classification/ofice31")
    with pytest.raises(FileNotFoundError, match="gh-downstream configs list"):
        find_config("xyz")


def test_a_file_may_be_based_on_a_packaged_one(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("_base_: classification/office31\noutput: out\n")
    (below, _), (above, content) = read_layers(own)
    assert (below, above) == (str(find_config("classification/office31")), str(own))
    assert content == {"output": "out"}
    own.write_text("_base_: classification/nothing\n")
    with pytest.raises(ConfigError, match=r"nothing: no such file, named as _base_ in .*own\.yaml"):
        read_layers(own)
