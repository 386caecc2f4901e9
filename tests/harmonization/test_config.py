"""The settings of a harmonized training."""

import dataclasses

import pytest
import torch
from torch import nn

from gh_downstream import GH, GHPlusPlus
from gh_downstream.harmonization import HarmonizationConfig
from tests.harmonization.networks import TwoHeads


def test_nothing_is_harmonized_by_default():
    config = HarmonizationConfig()
    assert config.weighting == "none"
    assert not config.at_features


def test_the_cap_goes_to_the_weighting():
    assert HarmonizationConfig(weighting="gh", max_weight=7.0).build_weighting() == GH(max_weight=7.0)
    assert HarmonizationConfig(weighting="gh++:0.3").build_weighting() == GHPlusPlus(0.3)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"weighting": "ghh"}, ["'ghh'", "sum, gh, gh++"]),
        ({"weighting": "gh++:1.5"}, ["1.5", "[0, 1]"]),
        ({"weighting": "gh", "max_weight": 0.5}, ["max_weight", "0.5"]),
        ({"measure": "heads"}, ["measure", "parameters, features"]),
        ({"scope": "half"}, ["scope", "shared, all", "'half'"]),
        ({"synchronize": "no"}, ["synchronize", "gradients, gramian"]),
        ({"period": 0}, ["period", "at least 1"]),
        ({"warmup_steps": -1}, ["warmup_steps", "at least 0"]),
        ({"tasks": {"task": ["a"]}}, ["two or more tasks"]),
        ({"measure": "features", "scope": "all"}, ["measure=features", "scope"]),
        ({"measure": "features", "period": 2, "warmup_steps": 3}, ["period, warmup_steps"]),
        ({"measure": "features", "shared": ["trunk"], "tasks": {"a": ["x"], "b": []}}, ["shared, tasks"]),
        ({"measure": "features", "synchronize": "gramian"}, ["synchronize"]),
    ],
    ids=str,
)
def test_an_unusable_value_is_one_error_that_says_what_there_is(settings, named):
    with pytest.raises(ValueError, match=named[0].replace("[", r"\[").replace("+", r"\+")) as caught:
        HarmonizationConfig(**settings)
    assert all(part in str(caught.value) for part in named)


def test_every_setting_reaches_the_harmonizer():
    model = TwoHeads()
    config = HarmonizationConfig(
        weighting="gh++:adaptive",
        scope="all",
        shared=["trunk.0"],
        tasks={"alignment": ["a"], "task": []},
        period=3,
        synchronize="gramian",
    )
    harmonizer = config.build_harmonizer(model)
    assert repr(harmonizer.weighting) == "gh++:adaptive"
    assert (harmonizer.scope, harmonizer.period, harmonizer.synchronize) == ("all", 3, "gramian")
    assert harmonizer.tasks == ("alignment", "task")
    assert [p.data_ptr() for p in harmonizer.shared] == [p.data_ptr() for p in model.trunk[0].parameters()]
    reached = {"weighting", "scope", "shared", "tasks", "period", "synchronize"}
    elsewhere = {"max_weight", "measure", "warmup_steps"}
    assert {field.name for field in dataclasses.fields(config)} == reached | elsewhere


class Shared(nn.Module):
    shared = ("head",)

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 2), nn.Linear(2, 1)


def test_what_is_shared_is_what_the_model_says_or_its_backbone_or_an_error():
    model = Shared()
    settings = HarmonizationConfig(weighting="gh")
    assert torch.equal(settings.build_harmonizer(model).shared[0], model.head.weight)
    model.shared = torch.ones(1)  # something else by that name
    assert torch.equal(settings.build_harmonizer(model).shared[0], model.backbone.weight)
    with pytest.raises(ValueError, match="shared"):
        settings.build_harmonizer(nn.Sequential(nn.Linear(2, 2)))
