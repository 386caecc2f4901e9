"""Which loss belongs to which task."""

import ast
import re

import pytest
import torch
import yaml

from gh_downstream.harmonization import group_losses, named_losses
from gh_downstream.harmonization.losses import check_tasks

DETECTION = [
    "loss_rpn_cls",
    "loss_rpn_loc",
    "loss_cls",
    "loss_box_reg",
    "loss_mask",
    "loss_keypoint",
    "loss_centerness",
    "loss_cls_pseudo",
    "loss_rpn_cls_pseudo",
]


def losses(keys):
    return {key: torch.tensor(float(2**k)) for k, key in enumerate(keys)}


@pytest.mark.parametrize(
    "alignment",
    [
        ["loss_image_domain", "loss_instance_domain", "loss_consistency"],  # this package
        ["loss_local_domain", "loss_global_domain"],  # its strong-weak alignment
        ["loss_domain"],
        ["loss_da_img_source_weak", "loss_da_ins_target_weak"],  # ALDI
        ["loss_da_image", "loss_da_instance", "loss_da_consistency"],  # MIC, SADA
        ["loss_D_img_s", "loss_D_img_t"],  # Adaptive Teacher
        ["loss_image_d", "loss_instance_d", "loss_consistency_d"],  # DA Faster R-CNN for Detectron2
    ],
)
def test_the_default_knows_the_keys_of_well_known_codebases(alignment):
    grouped = group_losses(losses([*DETECTION, *alignment]))
    assert list(grouped) == ["alignment", "task"]
    assert grouped["task"] == 2 ** len(DETECTION) - 1
    assert grouped["alignment"] == 2 ** len(DETECTION) * (2 ** len(alignment) - 1)


@pytest.mark.parametrize("keys", [DETECTION, ["loss_domain"]])
def test_losses_of_one_side_alone_are_an_error_with_the_line_that_cures_it(keys):
    with pytest.raises(ValueError, match=r"GH: \{TASKS: \{ALIGNMENT: ") as caught:
        group_losses(losses(keys))
    assert keys[0] in str(caught.value)


def test_tasks_come_in_the_order_given():
    named = losses(["loss_contrastive", "loss_mmd_image", "loss_mmd_text"])
    tasks = {"task": ["loss_c*"], "alignment": ["loss_mmd_text", "loss_mmd_*"]}
    assert {task: float(loss) for task, loss in group_losses(named, tasks).items()} == {"task": 1, "alignment": 6}
    assert list(group_losses(named, dict(reversed(tasks.items())))) == ["alignment", "task"]
    assert float(group_losses(named, {"alignment": ["*mmd*"], "task": []})["task"]) == 1


def test_losses_that_are_nested_are_of_the_tasks_that_nest_them():
    nested = {"task": losses(["a", "b"]), "alignment": losses(["c"]), "empty": {}}
    assert {task: float(loss) for task, loss in group_losses(nested).items()} == {"task": 3, "alignment": 1}
    assert {task: float(loss) for task, loss in group_losses(nested, {"x": ["a", "c"], "y": []}).items()} == {
        "x": 2,
        "y": 2,
    }
    assert list(named_losses(nested)) == ["a", "b", "c"]


def test_two_losses_of_one_name_and_no_loss_are_refused():
    with pytest.raises(ValueError, match="'a'"):
        named_losses({"task": losses(["a"]), "alignment": losses(["a"])})
    with pytest.raises(ValueError, match="no loss"):
        named_losses({"task": {}})


@pytest.mark.parametrize(
    ("tasks", "named"),
    [
        ({"alignment": ["*_da_*", "_dx_"], "task": []}, ["'_dx_'", "tasks.alignment", "loss_cls, loss_box"]),
        ({"alignment": ["*_da_*"], "task": ["*_cls"]}, ["'loss_box'", "none of the tasks"]),
        ({"alignment": ["*_da_*", "*_box"], "task": ["loss*"]}, ["alignment and task"]),
        ({"alignment": ["loss*"], "task": []}, ["tasks.task", "no loss is left"]),
        ({"a": ["cls"], "b": ["*"]}, ["tasks.a", "'cls'"]),
    ],
)
def test_patterns_that_do_not_fit_are_errors_that_list_the_losses(tasks, named):
    with pytest.raises(ValueError, match="tasks") as caught:
        group_losses(losses(["loss_cls", "loss_box", "loss_da_img"]), tasks)
    assert all(part in str(caught.value) for part in named)


def test_two_patterns_of_one_task_may_fit_the_same_loss():
    grouped = group_losses(losses(["a", "b", "ab"]), {"x": ["a*", "ab"], "y": ["b"]})
    assert (grouped["x"], grouped["y"]) == (5, 2)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"task": []}, "two or more tasks"),
        ({"alignment": "_da_", "task": []}, "tasks.alignment takes a list of patterns, got '_da_'"),
        ({"alignment": [], "task": []}, "only one"),
    ],
)
def test_tasks_are_checked_before_there_are_losses(tasks, message):
    with pytest.raises(ValueError, match=message):
        check_tasks(tasks)


@pytest.mark.parametrize(
    ("tasks", "cure"),
    [
        ({"alignment": ["loss_domian"], "task": []}, {"alignment": ["loss_domain"], "task": []}),
        (
            {"alignment": ["loss_adv*"], "task": ["loss_cls", "loss_bx"]},
            {"alignment": ["loss_domain"], "task": ["loss_cls", "loss_box"]},
        ),
        ({"alignment": ["loss_domain"], "task": ["loss_cls"]}, {"alignment": ["loss_domain"], "task": []}),
    ],
)
def test_the_error_of_a_pattern_has_the_line_that_cures_it(tasks, cure):
    losses = {name: torch.tensor(1.0) for name in ("loss_cls", "loss_box", "loss_domain")}
    with pytest.raises(ValueError, match="the losses are loss_cls, loss_box, loss_domain") as caught:
        group_losses(losses, tasks)
    given = re.search(r"tasks = (\{.*?\}) \(in the YAML of a Detectron2 config (.*)\)$", str(caught.value))
    found = ast.literal_eval(given[1])
    if len(tasks["task"]) < 2:  # Of two mistakes each error cures one.
        assert found == cure
        group_losses(losses, found)
    assert yaml.safe_load(given[2]) == {"GH": {"TASKS": {task.upper(): found[task] for task in found}}}


def test_losses_that_are_not_called_like_an_alignment_s_have_a_line_too():
    losses = {"loss_cls": torch.tensor(1.0), "loss_adv": torch.tensor(2.0)}
    with pytest.raises(ValueError, match=r"GH: \{TASKS: \{ALIGNMENT: \['loss_adv'\], TASK: \[\]\}\}"):
        group_losses(losses)


def test_the_tasks_are_in_the_order_given():
    losses = {"b": torch.tensor(1.0), "a": torch.tensor(2.0)}
    for order in ("ab", "ba"):
        assert list(group_losses(losses, {task: [task] for task in order})) == list(order)
        assert list(group_losses({task: {task: losses[task]} for task in order})) == list(order)
