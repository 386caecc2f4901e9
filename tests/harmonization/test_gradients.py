"""Gradients that share memory, hooks, and what runs backward in place: as one backward pass of the sum would do."""

import copy
import warnings

import pytest
import torch
from torch import nn

from gh_downstream import GH, Harmonizer, Sum
from gh_downstream.harmonization.gradients import unaliased
from tests.harmonization.networks import InPlaceSine, TwoHeads, batch

PLUS, MINUS = torch.tensor([3.0, 1.0, 0.0, 2.0]), torch.tensor([-2.0, 1.0, 0.5, -1.0])


def sums(parameters):
    """Two losses of a sum of parameters of four entries, whose gradients autograd leaves as views of one tensor."""
    total = sum(parameter.view(-1) for parameter in parameters)
    return {"alignment": total @ PLUS, "task": total @ MINUS}


def four(number):
    return [nn.Parameter(torch.ones(shape)) for shape in [(4,), (2, 2), (4, 1), (1, 4)][:number]]


@pytest.mark.parametrize("shared", [1, 2, 3, 4])
@pytest.mark.parametrize("period", [1, 2])
def test_gradients_that_share_memory_are_weighed_and_added_once(shared, period):
    parameters = four(4)
    harmonizer = Harmonizer(GH(), parameters[:shared], period=period)
    weights = GH()(shared * torch.stack([PLUS, MINUS]) @ torch.stack([PLUS, MINUS]).T).float()
    for step in (1, 2):
        report = harmonizer.backward(sums(parameters))
        assert report.gramian[0, 0] == 14 * shared
        for k, parameter in enumerate(parameters):
            w = weights if k < shared else torch.ones(2)
            torch.testing.assert_close(parameter.grad.flatten(), step * (w[0] * PLUS + w[1] * MINUS))


def test_gradients_that_share_memory_with_those_of_before_are_added_once():
    a, b, c = four(3)
    sum(sums([a, b, c]).values()).backward()  # As a plain pass leaves them: views of one tensor.
    Harmonizer(Sum(), [a]).backward(sums([a, b, c]))
    for parameter in (a, b, c):
        torch.testing.assert_close(parameter.grad.flatten(), 2 * (PLUS + MINUS))


def test_a_gradient_that_was_expanded_or_given_to_two_parameters_can_be_added_to():
    a, b, c = four(3)
    a.grad = b.grad = None
    a.grad = torch.ones(1).expand(4)
    b.grad = c.grad = None
    b.grad, c.grad = a.grad.clone().view(2, 2), torch.zeros(4, 1)
    Harmonizer(Sum(), [a]).backward(sums([a, b, c]))
    torch.testing.assert_close(a.grad, 1 + PLUS + MINUS)
    torch.testing.assert_close(b.grad.flatten(), 1 + PLUS + MINUS)


class Halves(torch.autograd.Function):
    """Hands on overlapping windows of one tensor."""

    @staticmethod
    def forward(ctx, a, b):
        return a.sum() + b.sum()

    @staticmethod
    def backward(ctx, gradient):
        buffer = gradient * torch.arange(1.0, 7.0)
        return buffer[:4], buffer[2:]


@pytest.mark.parametrize("shared", [1, 2])
def test_gradients_that_overlap_in_part_are_told_apart(shared):
    a, b = four(1) + four(1)
    Harmonizer(GH(), [a, b][:shared]).backward({"alignment": Halves.apply(a, b), "task": -0.5 * Halves.apply(a, b)})
    first, second = torch.arange(1.0, 5.0), torch.arange(3.0, 7.0)
    torch.testing.assert_close(b.grad, 0.5 * second if shared == 1 else 0 * second, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.grad, 0 * first, atol=1e-5, rtol=1e-5)


def test_only_what_overlaps_is_copied():
    buffer = torch.arange(12.0)
    parts = [buffer[:4], buffer[4:8], buffer[6:], torch.ones(1).expand(3), None, buffer[8:8]]
    found = unaliased(parts)
    assert [a is b for a, b in zip(found, parts, strict=True)] == [True, True, False, False, True, True]
    for a, b in zip(found, parts, strict=True):
        assert a is b or torch.equal(a, b)


def halved(gradient):
    gradient.mul_(0.5)


@pytest.mark.parametrize("scope", ["shared", "all"])
@pytest.mark.parametrize("period", [1, 2])
@pytest.mark.parametrize(
    "hook",
    [
        lambda gradient: gradient.clamp(-1e-3, 1e-3),
        halved,
        lambda gradient: gradient + 1,
    ],
)
def test_hooks_on_parameters_run_once_as_in_a_plain_pass(hook, period, scope):
    model = TwoHeads()
    plain = copy.deepcopy(model)
    harmonizer = Harmonizer(Sum(), shared=model.trunk, period=period, scope=scope)
    for network in (model, plain):
        for parameter in network.parameters():
            parameter.register_hook(hook)
    for seed in (1, 2):  # The second adds to the first.
        harmonizer.backward(model(batch(seed=seed)))
        sum(plain(batch(seed=seed)).values()).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_hooks_stay_registered_are_left_out_of_the_measurement_and_are_there_after_an_error():
    model, other = TwoHeads(), TwoHeads()
    calls = []
    handle = model.trunk[0].weight.register_hook(calls.append)
    harmonizer = Harmonizer(GH(), shared=model.trunk)
    weighed = harmonizer.weigh(model(batch()))
    assert not calls
    assert torch.equal(weighed.gramian, Harmonizer(GH(), shared=other.trunk).weigh(other(batch())).gramian)
    losses = model(batch())
    losses["task"].backward()
    calls.clear()
    with pytest.raises(RuntimeError, match="second time"):
        harmonizer.backward(losses)
    harmonizer.backward(model(batch()))
    assert len(calls) == 1
    handle.remove()
    harmonizer.backward(model(batch()))
    assert len(calls) == 1


class InPlace(torch.autograd.Function):
    """A mean of squares that makes its gradients in the forward pass and scales them in place, as fused losses do."""

    @staticmethod
    def forward(ctx, x, weight):
        y = x @ weight.T
        ctx.gradients = (2 * y @ weight / y.numel(), 2 * y.T @ x / y.numel())
        return y.pow(2).mean()

    @staticmethod
    def backward(ctx, gradient):
        return tuple(saved.data.mul_(gradient) for saved in ctx.gradients)


def fused(model, x, scale):
    features = model.trunk(x)
    task = InPlace.apply(features, model.head.weight)
    return {"task": scale * task, "alignment": -scale * (features - 1).pow(2).mean()}


@pytest.mark.parametrize("scope", ["shared", "all"])
def test_a_loss_that_runs_backward_in_place_is_right_at_held_weights(scope):
    model, plain = TwoHeads(), TwoHeads()
    harmonizers = [Harmonizer(GH(), shared=m.trunk, period=3, scope=scope) for m in (model, plain)]
    for seed in range(3):
        harmonizers[0].backward(fused(model, batch(seed=seed), 64.0))
        features = plain.trunk(batch(seed=seed))
        task = (features @ plain.head.weight.T).pow(2).mean()
        harmonizers[1].backward({"task": 64 * task, "alignment": -64 * (features - 1).pow(2).mean()})
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)


class InPlaceSquares(torch.autograd.Function):
    """A mean of squares of outputs, whose gradient goes on to other layers, so that no leaf's is what was saved."""

    @staticmethod
    def forward(ctx, y):
        ctx.gradient = 2 * y / y.numel()
        return y.pow(2).mean()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.gradient.data.mul_(gradient)


@pytest.mark.parametrize("scale", [0.01, 1.0, 2.0, 64.0, 65536.0])
@pytest.mark.parametrize("of", ["outputs", "weights"])
def test_a_loss_that_runs_backward_in_place_cannot_be_weighed_alone(of, scale):
    model = TwoHeads()
    losses = fused(model, batch(), scale)
    if of == "outputs":
        losses["task"] = scale * InPlaceSquares.apply(model.head(model.trunk(batch())))
    with pytest.raises(RuntimeError, match=r"'task' gives another gradient.*Harmonizer\.backward"):
        Harmonizer(GH(), shared=model.trunk).weigh(losses)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 65536.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_that_can_run_backward_twice_can_be_weighed(scale, dtype):
    model = TwoHeads().to(dtype)
    losses = {task: scale * loss for task, loss in model(batch().to(dtype)).items()}
    weights = Harmonizer(GH(), shared=model.trunk).weigh(losses).weights
    expected = Harmonizer(GH(), shared=model.trunk).backward(losses).weights
    torch.testing.assert_close(weights, expected, rtol=0.1 if dtype == torch.bfloat16 else 1e-6, atol=0)


@pytest.mark.parametrize("period", [1, 3])
def test_private_parameters_within_what_is_shared_get_the_plain_gradient(period):
    # What is shared is the last layer of the trunk: the first one is private, and lies behind it.
    model = TwoHeads()
    harmonizer = Harmonizer(GH(), shared=model.trunk[2], period=period)
    for seed in range(3):
        model.zero_grad()
        losses = model(batch(seed=seed))
        by_task = [
            torch.autograd.grad(losses[t], model.trunk.parameters(), retain_graph=True) for t in harmonizer.tasks
        ]
        weights = harmonizer.backward(losses).weights.float()
        for k, parameter in enumerate(model.trunk.parameters()):
            w = weights if k >= 2 else torch.ones(2)
            torch.testing.assert_close(
                parameter.grad, w[0] * by_task[0][k] + w[1] * by_task[1][k], rtol=1e-4, atol=1e-6
            )


def test_a_sparse_gradient_of_a_shared_parameter_is_refused_before_any_gradient_is_written():
    words, head = nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1)
    head(torch.ones(2)).sum().backward()
    before = [parameter.grad.clone() for parameter in head.parameters()]

    def losses():
        return {"task": head(words(torch.arange(3))).sum(), "alignment": -head(words(torch.arange(2))).sum()}

    harmonizer = Harmonizer(GH(), shared=words)
    for call in (harmonizer.backward, harmonizer.weigh):
        with pytest.raises(ValueError, match="sparse"):
            call(losses())
        assert words.weight.grad is None
        assert all(torch.equal(p.grad, q) for p, q in zip(head.parameters(), before, strict=True))
    private = Harmonizer(GH(), shared=head)
    for _ in range(2):
        private.backward(losses())
    assert words.weight.grad.is_sparse


@pytest.mark.parametrize("of", ["module", "name", "parameters"])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_layer_of_the_trunk_that_is_replaced_is_harmonized_or_missed(of, steps):
    model = TwoHeads()
    shared = {"module": model.trunk, "name": "trunk", "parameters": list(model.trunk.parameters())}[of]
    harmonizer = Harmonizer(GH(), shared, model=model)
    for _ in range(steps):
        harmonizer.backward(model(batch()))
    model.trunk[2] = nn.Linear(12, 8)
    model.zero_grad()
    if of == "parameters":
        with pytest.warns(UserWarning, match=r"2 of the 4 parameters.*replaced, wrapped \(LoRA\) or sharded"):
            harmonizer.backward(model(batch()))
        return
    same = copy.deepcopy(model)
    expected = Harmonizer(GH(), same.trunk).backward(same(batch()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(harmonizer.backward(model(batch())).gramian, expected.gramian)
    for p, q in zip(model.parameters(), same.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)


class Lora(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def test_a_layer_of_the_trunk_that_is_wrapped_is_harmonized_or_missed():
    model = TwoHeads()
    named, listed = Harmonizer(GH(), model.trunk), Harmonizer(GH(), model.trunk.parameters())
    model.trunk[2] = Lora(model.trunk[2])
    assert named.backward(model(batch())).gramian.shape == (2, 2)
    assert model.trunk[2].up.weight in set(named.shared)
    with pytest.warns(UserWarning, match="2 of the 4"):
        listed.backward(model(batch()))
    whole = TwoHeads()
    harmonizer = Harmonizer(GH(), whole.trunk.parameters())
    whole.trunk = TwoHeads().trunk
    with (
        pytest.warns(UserWarning, match="4 of the 4"),
        pytest.raises(ValueError, match=r"reaches no shared parameter.*replaced, wrapped"),
    ):
        harmonizer.backward(whole(batch()))


class OwnSine(torch.autograd.Function):
    """A sine as one writes it oneself, which leaves what it saved as it is."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return x.cos() * gradient


def of_one_trunk(function, layers, scale=1.0):
    features = function.apply(layers[0](torch.randn(6, 3)))
    if len(layers) > 1:
        features = layers[1](features)
    return {"alignment": scale * features.sum(), "task": -scale * (features * torch.arange(4)).sum()}


@pytest.mark.parametrize("scale", [1e-6, 1.0, 65536.0])
@pytest.mark.parametrize("norm", [False, True])
def test_a_trunk_that_runs_backward_in_place_is_refused_by_its_name(norm, scale):
    layers = nn.ModuleList([nn.Linear(3, 4), *([nn.LayerNorm(4)] if norm else [])])
    with pytest.raises(RuntimeError, match=r"what the losses share gives another.*InPlaceSineBackward.*fork"):
        Harmonizer(GH(), layers).backward(of_one_trunk(InPlaceSine, layers, scale))
    assert all(parameter.grad is None for parameter in layers.parameters())


def test_a_trunk_with_functions_of_its_own_is_tried_once_and_gives_the_same():
    layers, calls = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 4)]), []
    layers[1].register_full_backward_hook(lambda *_: calls.append(1))
    harmonizer, plain = Harmonizer(GH(), layers), Harmonizer(GH(), layers)
    for expected in (4, 2, 2):
        torch.manual_seed(0)
        harmonizer.backward(of_one_trunk(OwnSine, layers))
        found = [parameter.grad for parameter in layers.parameters()]
        layers.zero_grad()
        assert len(calls) == expected
        calls.clear()
        torch.manual_seed(0)
        plain.backward(of_one_trunk(Sine, layers))
        for parameter, gradient in zip(layers.parameters(), found, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-6)
        layers.zero_grad()
        assert len(calls) == 2
        calls.clear()


class Sine:
    """Torch's own, which needs no trial."""

    apply = staticmethod(torch.sin)
