"""Which loss belongs to which task."""

import pytest
import torch

from gh_downstream.harmonization import HarmonizationConfig
from gh_downstream.integrations.detectron2.losses import group_losses
from tests.integrations.detectron2 import toy_detectors as common_detectors  # noqa: F401  # it skips where Detectron2 is missing

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
        ["loss_da_img_source_weak", "loss_da_ins_target_weak"],  # ALDI
        ["loss_da_image", "loss_da_instance", "loss_da_consistency"],  # MIC, SADA
        ["loss_D_img_s", "loss_D_img_t"],  # Adaptive Teacher
        ["loss_image_d", "loss_instance_d", "loss_consistency_d"],  # DA Faster R-CNN for Detectron2
    ],
)
def test_the_default_knows_the_keys_of_well_known_codebases(alignment):
    tasks = HarmonizationConfig(weighting="gh").tasks
    grouped = group_losses(losses([*DETECTION, *alignment]), tasks)
    assert list(grouped) == ["alignment", "task"]
    assert grouped["task"] == 2 ** len(DETECTION) - 1
    assert grouped["alignment"] == 2 ** len(DETECTION) * (2 ** len(alignment) - 1)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"alignment": ["_da_", "_dx_"], "task": []}, r"pattern '_dx_' of task alignment .* the losses are loss_cls, "),
        ({"alignment": ["_da_"], "task": ["_cls"]}, "'loss_box' matches no pattern of any task"),
        ({"alignment": ["_da_", "_box"], "task": ["loss"]}, "matches patterns of the tasks"),
        ({"alignment": ["loss"], "task": []}, "no loss is left for task task"),
    ],
)
def test_patterns_that_do_not_fit_are_errors_that_list_the_losses(tasks, message):
    with pytest.raises(ValueError, match=message):
        group_losses(losses(["loss_cls", "loss_box", "loss_da_img"]), tasks)


def test_two_patterns_of_one_task_may_match_the_same_loss():
    grouped = group_losses(losses(["a", "b", "ab"]), {"x": ["a", "ab"], "y": ["^b"]})
    assert (grouped["x"], grouped["y"]) == (5, 2)
