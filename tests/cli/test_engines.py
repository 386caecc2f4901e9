"""The engine of a configuration is found from its keys."""

import pytest

from gh_downstream.cli.engines import ENGINES, EngineName, engine_of
from gh_downstream.training.configs import find_config, list_configs


def folder_of(name):
    """The engine that the folder of a configuration says."""
    workload, _, rest = name.partition("/")
    return {"detection": "torchvision" if rest.startswith("torchvision/") else "detectron2"}.get(workload, workload)


def test_every_packaged_configuration_has_the_engine_of_its_folder():
    names = list_configs()
    assert {name: engine_of(find_config(name)).value for name in names} == {name: folder_of(name) for name in names}


@pytest.mark.parametrize("name", ENGINES, ids=lambda name: name.value)
def test_the_keys_of_an_engine_are_its_own(name):
    fields = {other: set(engine.schema.__dataclass_fields__) for other, engine in ENGINES.items()}
    own = ENGINES[name].own_keys
    assert own <= fields.pop(name)
    assert not any(own & keys for keys in fields.values())
    assert hasattr(ENGINES[name].module, "build_trainer")


def test_a_file_of_the_user_s_own(tmp_path):
    (tmp_path / "base.yaml").write_text("encoder: tiny\n")
    (tmp_path / "own.yaml").write_text("_base_: base.yaml\nbatch_size: 8\n")
    assert engine_of(tmp_path / "own.yaml") is EngineName.RETRIEVAL
    (tmp_path / "own.yaml").write_text("MODEL: {DEVICE: cpu}\n")
    assert engine_of(tmp_path / "own.yaml") is EngineName.DETECTRON2


@pytest.mark.parametrize("content", ["batch_size: 8\n", "encoder: tiny\nbackbone: digits\n"])
def test_where_the_keys_do_not_tell_the_user_has_to(tmp_path, content):
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"own\.yaml.*--engine"):
        engine_of(tmp_path / "own.yaml")
