"""Which losses go into which group."""

import pytest
import torch

from gh_downstream.training.grouping import group_losses

LOSSES = {
    name: torch.tensor(float(k)) for k, name in enumerate(["loss_contrastive", "loss_mmd_image", "loss_mmd_text"])
}


def test_groups_are_sorted_by_name_and_hold_the_losses_in_their_order():
    groups = {"task": ["loss_c*"], "alignment": ["loss_mmd_text", "loss_mmd_*"]}
    grouped = group_losses(LOSSES, groups)
    assert [(group, list(losses)) for group, losses in grouped.items()] == [
        ("alignment", ["loss_mmd_image", "loss_mmd_text"]),
        ("task", ["loss_contrastive"]),
    ]
    assert all(loss is LOSSES[name] for losses in grouped.values() for name, loss in losses.items())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": ["loss_c*"], "b": ["loss_mmd_image"]}, "loss_mmd_text to none of the groups a, b"),
        ({"a": ["loss_c*"], "b": ["loss_mmd*"], "c": ["*text"]}, "loss_mmd_text to the groups b and c"),
        (
            {"a": ["loss_c*", "loss_C*"], "b": ["loss_mmd*"]},
            "groups.a: 'loss_C\\*' fits no loss; the losses are loss_contr",
        ),
        ({"a": ["contrastive"], "b": ["*"]}, "groups.a: 'contrastive' fits no loss"),
    ],
)
def test_a_loss_without_a_group_and_a_pattern_without_a_loss_are_named(groups, message):
    with pytest.raises(ValueError, match=message):
        group_losses(LOSSES, groups)
