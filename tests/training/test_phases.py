"""Several updates a step: what moves, what the model gets to see, and what is harmonized."""

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from gh_downstream.training import AdaptedModel, Phase, Trainer, build_optimizer, read_metrics
from gh_downstream.training.model import trained_alone
from tests.training import toy

STEPS = 3


@pytest.fixture(autouse=True)
def fresh_accelerate():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


class Game(AdaptedModel):
    """Head and trunk learn the task, the critic the domains, then the trunk the task and to mislead the critic."""

    shared = ("trunk",)
    phases = (
        Phase("learn", ("trunk", "head")),
        Phase("judge", ("critic.*",)),
        Phase("mislead", ("trunk",), harmonized=True),
        Phase("mislead", ("trunk",), harmonized=True),
    )

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6))
        self.head, self.critic = nn.Linear(6, 1), nn.Linear(6, 1)
        self.seen = []  # of every call: the phase, what requires a gradient, and the weights.

    def forward(self, source, labels, target, phase):
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        self.seen.append((phase, trained, {name: p.detach().clone() for name, p in self.named_parameters()}))
        source, target = self.trunk(source), self.trunk(target)
        task = {"mse": (self.head(source)[:, 0] - labels).square().mean(), "l1": self.head(source).abs().mean()}
        apart = self.critic(source).mean() - self.critic(target).mean()
        if phase == "learn":
            return {"task": task}
        if phase == "judge":
            return {"alignment": {"judged": -apart}}
        return {"task": task, "alignment": {"apart": apart}}


def trainer(output, model, *, harmonization=None, optimizer=None, **training):
    settings = toy.config(output, steps=STEPS, harmonization=harmonization, optimizer=optimizer, **training)
    batches = toy.Batches(noise=0.0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Trainer(settings, model, build_optimizer(settings.optimizer, trained), batches)


@pytest.mark.parametrize("method", ["none", "gh++"])
@pytest.mark.parametrize("optimizer", [{"name": "sgd", "weight_decay": 0.1}, {"name": "adamw", "weight_decay": 0.1}])
def test_a_phase_moves_what_it_names_and_nothing_that_is_frozen(method, optimizer, tmp_path):
    model = Game()
    model.trunk[0].weight.requires_grad_(False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    trainer(tmp_path, model, harmonization={"weighting": method}, optimizer=optimizer).run()
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    parts = {"learn": ("trunk", "head"), "judge": ("critic",), "mislead": ("trunk",)}
    assert [phase for phase, *_ in model.seen] == ["learn", "judge", "mislead", "mislead"] * STEPS
    model.seen.append((None, None, dict(model.named_parameters())))
    for (phase, required, before), (*_, after) in zip(model.seen[:-1], model.seen[1:], strict=True):
        named = {name for name in trained if name.startswith(parts[phase])}
        assert required == named
        assert {name for name in before if not torch.equal(before[name], after[name])} == named


def test_gradients_are_required_again_after_an_error():
    model = Game()
    critic = {name for name, _ in model.named_parameters() if name.startswith("critic")}

    def interrupted():
        with trained_alone(model, Phase("judge", ("critic",))):
            assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == critic
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_only_phases_that_say_so_are_harmonized(tmp_path):
    whole = trainer(tmp_path, Game(), harmonization={"weighting": "gh"}, log_every=1)
    calls = []
    backward = whole.harmonizer.backward
    whole.harmonizer.backward = lambda losses, *more: calls.append(sorted(losses)) or backward(losses, *more)
    whole.run()
    assert calls == [["alignment", "task"]] * 2 * STEPS
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "total" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all({"mse", "l1", "judged", "apart", "gh/weight/alignment"} <= line.keys() for line in lines)


def test_groups_and_warmup_hold_for_the_harmonized_phases(tmp_path):
    groups = {"fit": ["mse"], "shrink": ["l1"], "align": ["apart"]}
    whole = trainer(
        tmp_path, Game(), harmonization={"weighting": "gh", "tasks": groups, "warmup_steps": 2}, log_every=1
    )
    whole.run()
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "total" in line]
    assert ["gh/weight/fit" in line for line in lines] == [False, False, True]
    assert whole.harmonizer.state_dict()["calls"] == 2


def test_a_harmonized_phase_of_one_side_is_an_error(tmp_path):
    model = Game()
    model.phases = (Phase("learn", ("trunk",), harmonized=True),)
    with pytest.raises(ValueError, match="step 1 has only task losses"):
        trainer(tmp_path, model, harmonization={"weighting": "gh"}).run()


def test_a_phase_that_names_nothing_is_an_error(tmp_path):
    model = Game()
    model.phases = (Phase("learn", ("neck",)),)
    with pytest.raises(ValueError, match="'neck' matches no parameter"):
        trainer(tmp_path, model, harmonization={"weighting": "none"}).run()
