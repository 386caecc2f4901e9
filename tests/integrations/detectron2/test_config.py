"""The GH node, and what it refuses."""

import dataclasses
import subprocess
import sys

import pytest
from detectron2.config import get_cfg

from gh_downstream.harmonization import HarmonizationConfig
from gh_downstream.integrations.detectron2 import add_gh_config, settings_of
from tests.integrations.detectron2.toy_detectors import toy_cfg


def test_the_node_has_every_setting_with_its_default():
    cfg = get_cfg()
    add_gh_config(cfg)
    assert settings_of(cfg) == HarmonizationConfig()
    assert set(cfg.GH) == {field.name.upper() for field in dataclasses.fields(HarmonizationConfig)} | {"LOG_PERIOD"}


def test_yaml_layers_and_command_line(tmp_path):
    (tmp_path / "base.yaml").write_text('GH: {WEIGHTING: "gh++:0.25", MAX_WEIGHT: 10}\n')
    (tmp_path / "child.yaml").write_text(
        "_BASE_: base.yaml\nGH: {SHARED: [backbone, head], TASKS: {ALIGNMENT: [_da_], TASK: [], INSTANCE: [_ins_]}}\n"
    )
    cfg = toy_cfg(tmp_path)
    cfg.merge_from_file(str(tmp_path / "child.yaml"))
    settings = settings_of(cfg)
    assert (settings.weighting, settings.max_weight) == ("gh++:0.25", 10)
    assert list(settings.tasks) == ["alignment", "task", "instance"]
    assert settings.shared == ["backbone", "head"]

    cfg.merge_from_list(["GH.WEIGHTING", "gh++:adaptive", "GH.TASKS.INSTANCE", "['_x_', '_y_']"])
    cfg.freeze()
    assert settings_of(cfg.clone()).weighting == "gh++:adaptive"
    assert settings_of(cfg).tasks["instance"] == ["_x_", "_y_"]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["WEIGHTING", "ghh"], ["'ghh'", "sum, gh, gh++"]),
        (["WEIGHTING", "None"], ["GH.WEIGHTING", "None"]),
        (["WEIGHTING", "gh++:often"], ["'often'", "adaptive"]),
        (["WEIGHTING", "gh", "MAX_WEIGHT", "0.5"], ["GH.MAX_WEIGHT", "0.5"]),
        (["SCOPE", "half"], ["GH.SCOPE", "shared, all", "'half'"]),
        (["PERIOD", "0"], ["GH.PERIOD", "at least 1"]),
        (["WARMUP_STEPS", "-1"], ["GH.WARMUP_STEPS", "at least 0"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_an_unusable_value_is_one_error_that_lists_what_there_is(tmp_path, overrides, named):
    cfg = toy_cfg(tmp_path)
    cfg.GH.merge_from_list(overrides)
    with pytest.raises(ValueError, match=r"^GH\.") as error:
        settings_of(cfg)
    for part in named:
        assert part in str(error.value)


def test_a_config_without_the_node_says_how_to_add_it():
    with pytest.raises(ValueError, match="add_gh_config"):
        settings_of(get_cfg())


@pytest.mark.slow
def test_the_plugin_needs_torch_and_detectron2_alone():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['accelerate', 'rich', 'torchjd']))\n"
        "from gh_downstream.integrations.detectron2 import install_gradient_harmonization"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
