"""The optimizers and schedules that published trainings take."""

import pytest
import torch
from torch import nn

from gh_downstream.training import OptimizerConfig, build_optimizer, parameter_groups
from gh_downstream.training.optimization import learning_rate_factor


def test_the_inv_schedule_is_the_one_of_the_published_code():
    # CDAN, GVB and SSRT take lr * (1 + 0.001 * step) ** -0.75; in CDAN's paper (1 + 10 p) ** -0.75 over 10 000 steps.
    config = OptimizerConfig(schedule="inv")
    factors = [learning_rate_factor(config, step, 20_000) for step in (0, 1000, 5000, 10_000)]
    assert factors == pytest.approx([1, 2**-0.75, 6**-0.75, 11**-0.75])
    other = OptimizerConfig(schedule="inv", gamma=0.5, power=1.0)
    assert learning_rate_factor(other, 6, 10) == pytest.approx(0.25)
    by_milestones = OptimizerConfig(milestones=[2, 3])
    assert [learning_rate_factor(by_milestones, step, 4) for step in range(4)] == pytest.approx([1, 1, 0.1, 0.01])


def test_nesterov_looks_ahead():
    moved = []
    for nesterov in (False, True):
        weight = nn.Parameter(torch.tensor([1.0]))
        config = OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.0, nesterov=nesterov)
        optimizer = build_optimizer(config, [weight])
        weight.sum().backward()
        optimizer.step()
        moved.append(1 - weight.item())
    assert moved == pytest.approx([0.1, 0.19])


def test_vectors_decay_where_the_configuration_says_so():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    for decay_all, decaying in ((False, 6), (True, 12)):
        config = OptimizerConfig(weight_decay=0.5, decay_all=decay_all)
        groups = parameter_groups(model, config, {})
        counted = {0.0: 0, 0.5: 0}
        for group in groups:
            counted[group["weight_decay"]] += sum(parameter.numel() for parameter in group["params"])
        assert counted == {0.5: decaying, 0.0: 12 - decaying}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adamw", "nesterov": True}, "nesterov needs name=sgd with a momentum, got adamw with 0.9"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov needs name=sgd with a momentum, got sgd with 0.0"),
        ({"schedule": "inv", "power": -1.0}, "power must be at least 0"),
        ({"schedule": "inv", "milestones": [3]}, "milestones need schedule=step"),
        ({"schedule": "poly"}, "schedule is one of step, cosine, inv"),
    ],
)
def test_what_an_optimizer_cannot_do_is_said(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**settings)
