"""The average of the weights: its values, what it shares with the model, and what the loop does with it."""

import logging

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gh_downstream.training import load_checkpoint, load_weights, read_metrics
from gh_downstream.training.averaging import WeightAverage
from tests.training import toy


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps one precision for the process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


class Tied(nn.Module):
    """Batch normalization, tied and frozen weights, a mask of infinities and an index."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("mask", torch.full((4,), -torch.inf))
        self.register_buffer("index", torch.arange(4), persistent=False)

    def forward(self, x):
        return self.frozen(self.last(self.norm(self.first(x)))) + torch.where(self.index < 9, 0, self.mask)


class Operators(TorchDispatchMode):
    """Notes what runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def changed(model, step):
    """Train a step, or what looks like one."""
    generator = torch.Generator().manual_seed(step)
    model(torch.randn(8, 4, generator=generator) + step)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator)


def test_average_has_the_weights_of_the_formula():
    model = Tied()
    average = WeightAverage(model, 0.5)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for name, value in average.module.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    decays = [2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5, 0.5]  # From step 8 on 9 / 18.
    for step, decay in enumerate(decays, start=1):
        changed(model, step)
        average.update(step)
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    found = average.module.state_dict()
    for name in ("first.weight", "last.weight", "last.bias", "norm.weight", "norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found[name], model.state_dict()[name])


def test_average_forgets_the_start():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1)
    average = WeightAverage(model, 0.999)
    nn.init.zeros_(model.weight)
    for step in range(1, 201):
        average.update(step)
    assert 0 < average.module.weight.item() < 1e-12  # A constant decay would have kept 0.82 of it.


def test_what_has_no_average_is_the_models_own():
    model = Tied()
    average = WeightAverage(model, 0.9).module
    for name in ("frozen.weight", "frozen.bias", "mask", "index", "norm.num_batches_tracked"):
        path, _, attribute = name.rpartition(".")
        assert getattr(average.get_submodule(path), attribute) is getattr(model.get_submodule(path), attribute)
    assert average.first.weight is average.last.weight is not model.first.weight
    assert not average.training
    assert model.training
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["frozen.weight", "frozen.bias"]


def test_an_update_is_one_pass():
    model = Tied()
    average = WeightAverage(model, 0.9)
    changed(model, 1)
    with Operators() as operators:
        average.update(1)
    assert operators.names == ["aten::_foreach_lerp_.Scalar"]
    assert average.module(torch.ones(2, 4)).isfinite().all()


def scored(state, precision="no"):
    """What the evaluation makes of weights."""
    model = toy.Toy()
    model.load_state_dict(state)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return toy.evaluate(model.eval())["score"]


def test_each_step_goes_into_the_average(tmp_path):
    states = [toy.Toy().state_dict()]
    for steps in (1, 2):
        toy.trainer(toy.config(tmp_path / str(steps), steps=steps, ema=0.9)).run()
        last = load_checkpoint(tmp_path / str(steps) / "last.pt")
        states.append(last["model"])
    for name, _ in toy.Toy().named_parameters():
        start, first, second = (state[name] for state in states)
        torch.testing.assert_close(last["average"][name], start.lerp(first, 9 / 11).lerp(second, 9 / 12))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_average_is_evaluated_and_kept_and_changes_no_training(tmp_path, precision):
    settings = {"best_metric": "score", "mixed_precision": precision}
    toy.trainer(toy.config(tmp_path / "plain", **settings)).run()
    metrics = toy.trainer(toy.config(tmp_path / "averaged", ema=0.9, **settings)).run()
    last, best = (load_checkpoint(tmp_path / "averaged" / name) for name in ("last.pt", "best.pt"))
    plain = load_checkpoint(tmp_path / "plain" / "last.pt")
    assert all(torch.equal(value, plain["model"][name]) for name, value in last["model"].items())
    assert metrics["score"] == scored(last["average"], precision) != scored(last["model"], precision)
    scores = [line["score"] for line in read_metrics(tmp_path / "averaged" / "metrics.jsonl") if "score" in line]
    assert scored(best["average"], precision) == max(scores)
    assert plain["average"] is None
    assert "model" not in best


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_weights_that_are_loaded_are_the_averaged_ones(tmp_path, caplog, name):
    caplog.set_level(logging.INFO)
    toy.trainer(toy.config(tmp_path / "a", ema=0.9, best_metric="score")).run()
    expected = load_checkpoint(tmp_path / "a" / name)["average"]
    model = toy.Toy()
    load_weights(model, tmp_path / "a" / name)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert f"{name}: the averaged weights are taken" in caplog.text
    begun = toy.trainer(toy.config(tmp_path / "b", ema=0.9, init_from=str(tmp_path / "a" / name))).state_dict()
    for key, value in expected.items():
        assert torch.equal(begun["model"][key], value)
        assert torch.equal(begun["average"][key], value)
