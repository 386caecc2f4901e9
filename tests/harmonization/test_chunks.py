"""A trunk applied in chunks against the same trunk applied at once: gradients, weights, memory, recomputations."""

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gh_downstream import GH, GHPlusPlus, GHPlusPlusOfficial, Harmonizer, Sum
from gh_downstream.harmonization import fork, in_chunks
from tests.harmonization.networks import InPlaceSine

ROWS, SIZE = 10, 4
EXACT = {"rtol": 1e-12, "atol": 1e-14}


class Trunk(nn.Module):
    """Dropout, a layer that is not used and a weight in an unusual memory format; counts its forward passes."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.layers = nn.Sequential(nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6))
        self.unused = nn.Linear(2, 2)
        self.checkpointing, self.calls = False, 0

    def forward(self, x):
        self.calls += 1
        x = self.convolution(x).flatten(2).mean(dim=2)
        return checkpoint(self.layers, x, use_reentrant=False) if self.checkpointing else self.layers(x)


class Model(nn.Module):
    """Two trunks whose products the task is of; the alignment is of the first, on source and target."""

    def __init__(self, size, dropout=0.0, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.other, self.size = Trunk(dropout), Trunk(dropout), size
        self.head, self.scale = nn.Linear(6, 1), nn.Parameter(torch.tensor(0.7))
        self.to(dtype)

    def encode(self, trunk, x):
        if self.size is None:
            return trunk(x)
        # What the chunks stand for, or the chunks themselves.
        if self.size < 0:
            return torch.cat([trunk(part) for part in x.split(-self.size)])
        return in_chunks(trunk, x, self.size)

    def forward(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        source, target, text = (
            torch.randn(ROWS, 3, 4, 4, generator=generator, dtype=torch.float64).to(self.scale.dtype) for _ in range(3)
        )
        a, b, c = self.encode(self.trunk, source), self.encode(self.trunk, target), self.encode(self.other, text)
        task = nn.functional.cross_entropy(self.scale.exp() * a @ c.T, torch.arange(ROWS))
        # Opposed to the task.
        return {"alignment": 9 * (self.head(a) - self.head(b)).mean() - 0.5 * task, "task": task}


def found(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal(ours, expected, **tolerance):
    for name, gradient in found(expected).items():
        assert (found(ours)[name] is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(found(ours)[name], gradient, msg=name, **(tolerance or EXACT))
            assert found(ours)[name].stride() == gradient.stride(), name


@pytest.mark.parametrize("size", [1, SIZE, ROWS, 100])
def test_the_plain_gradient_is_that_of_the_whole_batch(size):
    models = [Model(None), Model(size)]
    for model in models:
        sum(model().values()).backward()
    assert_equal(*reversed(models))
    assert models[1].trunk.unused.weight.grad is None


@pytest.mark.parametrize(
    "weighting", [Sum(), GH(), GHPlusPlus(), GHPlusPlus("adaptive"), GHPlusPlusOfficial()], ids=repr
)
@pytest.mark.parametrize("scope", ["shared", "all"])
@pytest.mark.parametrize("shared", [["trunk"], ["trunk", "other"], ["trunk.layers", "other.convolution", "scale"]])
def test_a_harmonized_step_is_that_of_the_whole_batch(weighting, scope, shared):
    """The other trunk is private, shared or both; the third step holds the weights of the second."""
    models = [Model(None), Model(SIZE)]
    reports = []
    for model in models:
        harmonizer = Harmonizer(weighting, shared, model=model, scope=scope, period=2, loss_weights={"task": 0.3})
        for seed in range(4):
            report = harmonizer.backward(model(seed), {"alignment": 0.5 * seed, "task": 1.5})
        reports.append(report)
    torch.testing.assert_close(reports[1].gramian, reports[0].gramian, **EXACT)
    assert reports[0].conflict
    assert_equal(*reversed(models))


def test_all_tasks_go_through_one_computation_of_a_chunk():
    model, chunks = Model(SIZE), 3  # of 10 rows
    losses = model() | {"third": model.encode(model.trunk, torch.ones(ROWS, 3, 4, 4).double()).square().mean()}
    assert (model.trunk.calls, model.other.calls) == (3 * chunks, chunks)
    Harmonizer(GH(), model.trunk, tasks=["alignment", "task", "third"]).backward(losses)
    assert (model.trunk.calls, model.other.calls) == (6 * chunks, 2 * chunks)


def test_weighing_alone_and_the_fork_work():
    models = [Model(None), Model(SIZE)]
    weights = []
    for model in models:
        losses = model()
        report = Harmonizer(GHPlusPlus(), model.trunk, model=model).weigh(losses)
        weights.append(report.weights)
        (report.weights @ torch.stack([losses["alignment"], losses["task"]])).backward()
        first, second = fork(model.encode(model.trunk, torch.ones(ROWS, 3, 4, 4).double()), GH())
        (first.square().mean() - second.sum()).backward()
    torch.testing.assert_close(*weights, **EXACT)
    assert_equal(*reversed(models))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("harmonized", [False, True])
def test_random_numbers_are_the_same_in_both_computations(harmonized, checkpointing):
    models, states = [Model(-SIZE, dropout=0.5), Model(SIZE, dropout=0.5)], []
    for model in models:
        model.trunk.checkpointing = checkpointing
        torch.manual_seed(3)
        losses = model()
        torch.manual_seed(4)
        if harmonized:
            Harmonizer(GHPlusPlus(), model.trunk).backward(losses)
        else:
            sum(losses.values()).backward()
        states.append(torch.get_rng_state())
    assert_equal(*reversed(models))
    assert torch.equal(*states)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("harmonized", [False, True])
def test_autocast_is_the_same_in_both_computations(harmonized, inside):
    """Where the backward pass is inside of the context, its casts of weights have a graph."""
    models = [Model(-SIZE, dtype=torch.float32), Model(SIZE, dtype=torch.float32)]

    def run(model, losses):
        if harmonized:
            Harmonizer(GHPlusPlus(), model.trunk).backward(losses)
        else:
            sum(losses.values()).backward()

    for model in models:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model()
            losses["task"] = losses["task"] + model.trunk(torch.ones(2, 3, 4, 4)).sum()  # Has a graph, as ever.
            if inside:
                run(model, losses)
        if not inside:
            run(model, losses)
    assert not models[0].trunk.convolution.weight.grad.eq(0).all()
    assert_equal(*reversed(models), rtol=2e-2, atol=2e-2)


def test_a_scale_of_the_losses_passes_through():
    models = [Model(SIZE), Model(SIZE)]
    for model, scale in zip(models, (1, 1024), strict=True):
        Harmonizer(GH(), model.trunk).backward({task: scale * loss for task, loss in model().items()})
    for name, gradient in found(models[0]).items():
        if gradient is not None:
            torch.testing.assert_close(found(models[1])[name], 1024 * gradient, **EXACT)


@pytest.mark.parametrize("harmonized", [False, True])
def test_the_activations_of_one_chunk_are_in_memory_at_a_time(harmonized):
    model, kept, most = Model(1), [], []

    def keep(module, arguments, output):
        kept.append(weakref.ref(output))
        most.append(sum(each() is not None for each in kept))

    for layer in model.trunk.layers:
        layer.register_forward_hook(keep)
    losses = model()
    assert not any(each() is not None for each in kept)
    if harmonized:
        Harmonizer(GH(), model.trunk).backward(losses)
    else:
        sum(losses.values()).backward()
    assert len(most) == 2 * 2 * ROWS * len(model.trunk.layers)
    assert max(most) <= 2 * len(model.trunk.layers)


@pytest.mark.parametrize("harmonized", [False, True])
def test_hooks_of_parameters_run_once_on_the_whole_gradient(harmonized):
    model, seen = Model(SIZE), []
    model.trunk.convolution.weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    losses = model()
    if harmonized:
        Harmonizer(GH(), model.trunk).backward(losses)
    else:
        sum(losses.values()).backward()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], model.trunk.convolution.weight.grad)


def test_gradients_are_added_to_those_that_are_there():
    once, twice = Model(SIZE), Model(SIZE)
    for model, steps in ((once, 1), (twice, 2)):
        for _ in range(steps):
            Harmonizer(GH(), model.trunk).backward(model())
    for name, gradient in found(once).items():
        if gradient is not None:
            torch.testing.assert_close(found(twice)[name], 2 * gradient, **EXACT)


def test_what_is_frozen_or_without_gradient_needs_none():
    trunk, x = Trunk(), torch.ones(ROWS, 3, 4, 4)
    with torch.no_grad():
        assert not in_chunks(trunk, x, SIZE).requires_grad
    trunk.requires_grad_(False)
    features = in_chunks(trunk, x, SIZE)
    assert not features.requires_grad
    torch.testing.assert_close(features, trunk(x))


def test_chunks_that_go_other_ways_reach_the_parameters_of_each():
    """As with a mixture of experts."""
    experts = nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3)])
    experts[2].requires_grad_(False)
    x = torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0, 2.0])[:, None] + torch.rand(6, 2) / 2
    features = in_chunks(lambda rows: experts[int(rows[0, 0])](rows), x, 2)
    features.square().sum().backward()
    for expert, rows in zip(experts[:2], x.split(2), strict=False):
        gradient = torch.autograd.grad(expert(rows).square().sum(), expert.weight)[0]
        torch.testing.assert_close(expert.weight.grad, gradient)
    assert experts[2].weight.grad is None


def test_an_error_in_the_backward_pass_leaves_all_as_it_was():
    model = Model(SIZE)
    losses = model()
    model.trunk.forward = lambda x: (_ for _ in ()).throw(RuntimeError("no second time"))
    with pytest.raises(RuntimeError, match="no second time"):
        Harmonizer(GH(), model.trunk).backward(losses)
    assert all(gradient is None for gradient in found(model).values())
    del model.trunk.forward
    expected = copy.deepcopy(model)
    for each in (model, expected):
        Harmonizer(GH(), each.trunk).backward(each())
    assert_equal(model, expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_cannot_run_backward_twice_is_computed_again_for_each_task(compiled):
    models, x = [Model(None), Model(SIZE)], torch.randn(ROWS, 5, dtype=torch.float64)
    for model, sine in zip(models, (torch.sin, InPlaceSine.apply), strict=True):
        layers = model.trunk.layers
        if model.size and compiled:
            layers = torch.compile(layers, backend="aot_eager")

        def trunk(rows, layers=layers, sine=sine):
            return layers(rows) if compiled else sine(layers(rows))

        features = model.encode(trunk, x) if model.size or not compiled else layers(x)
        Harmonizer(GH(), model.trunk).backward({"alignment": features.sum(), "task": features.square().sum()})
    assert_equal(*reversed(models))
