"""The GH node, and what it refuses."""

import subprocess
import sys

import pytest
from detectron2.config import get_cfg

from gh_downstream.harmonization import HarmonizationConfig
from gh_downstream.integrations.detectron2 import add_gh_config, settings_of
from tests.integrations.detectron2.toy_detectors import toy_cfg


def test_defaults_are_off_and_equal_those_of_the_arguments():
    cfg = get_cfg()
    add_gh_config(cfg)
    found = settings_of(cfg)
    expected = HarmonizationConfig(weighting="none")
    assert {**vars(found), "tasks": None, "shared": None} == {**vars(expected), "tasks": None, "shared": None}
    assert list(found.shared) == []
    assert {task: tuple(patterns) for task, patterns in found.tasks.items()} == expected.tasks


def test_yaml_layers_and_command_line(tmp_path):
    (tmp_path / "base.yaml").write_text("GH: {METHOD: gh++, LAMBDA: 0.25, MAX_WEIGHT: 10}\n")
    (tmp_path / "child.yaml").write_text(
        "_BASE_: base.yaml\nGH: {SHARED: [backbone, head], TASKS: {ALIGNMENT: [_da_], INSTANCE: [_ins_]}}\n"
    )
    cfg = toy_cfg(tmp_path)
    cfg.merge_from_file(str(tmp_path / "child.yaml"))
    settings = settings_of(cfg)
    assert (settings.method, settings.lam, settings.max_weight) == ("gh++", 0.25, 10)
    assert list(settings.tasks) == ["alignment", "task", "instance"]
    assert list(settings.shared) == ["backbone", "head"]

    cfg.merge_from_list(["GH.LAMBDA", "None", "GH.LAMBDA", "adaptive", "GH.TASKS.INSTANCE", "['_x_', '_y_']"])
    cfg.freeze()
    assert settings_of(cfg.clone()).lam == "adaptive"
    assert list(settings_of(cfg).tasks["instance"]) == ["_x_", "_y_"]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["METHOD", "ghh"], ["'ghh'", "sum, gh, gh++, gh++official", "none"]),
        (["METHOD", "None"], ["None", "gh++"]),
        (["METHOD", "gh++", "LAMBDA", "often"], ["'often'", "adaptive"]),
        (["METHOD", "gh++", "LAMBDA", "1.5"], ["1.5", "[0, 1]"]),
        (["METHOD", "gh", "GUARD", "True"], ["guard", "'gh'"]),
        (["METHOD", "gh", "MAX_WEIGHT", "0.5"], ["max_weight", "0.5"]),
        (["SCOPE", "half"], ["scope", "shared, all", "'half'"]),
        (["STEP", "three"], ["step", "two_backward, weighted_loss"]),
        (["SYNCHRONIZE", "no"], ["synchronize", "gradients, gramian"]),
        (["PERIOD", "0"], ["period", "at least 1"]),
        (["WARMUP_ITERS", "-1"], ["warmup_iters", "at least 0"]),
        (["LOG_PERIOD", "0"], ["log_period", "at least 1"]),
        (["STEP", "weighted_loss"], ["scope all", "two_backward"]),
        (["TASKS.ALIGNMENT", "[]"], ["only one task", "alignment", "task"]),
        (["TASKS.ALIGNMENT", "['(']"], ["'('", "alignment"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_an_unusable_value_is_one_error_that_lists_what_there_is(tmp_path, overrides, named):
    cfg = toy_cfg(tmp_path)
    cfg.GH.merge_from_list(overrides)
    with pytest.raises(ValueError, match="GH") as error:
        settings_of(cfg)
    for part in named:
        assert part in str(error.value)


def test_a_config_without_the_node_says_how_to_add_it():
    with pytest.raises(ValueError, match="add_gh_config"):
        settings_of(get_cfg())


def test_an_argument_that_takes_a_list_refuses_a_string():
    with pytest.raises(ValueError, match=r"tasks.alignment takes a list of patterns, got '_da_'"):
        HarmonizationConfig(weighting="gh", tasks={"alignment": "_da_", "task": []})
    with pytest.raises(ValueError, match="two or more tasks"):
        HarmonizationConfig(weighting="gh", tasks={"task": []})


def test_the_plugin_needs_torch_and_detectron2_alone():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['accelerate', 'rich', 'torchjd']))\n"
        "from gh_downstream.integrations.detectron2 import install_gradient_harmonization"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
