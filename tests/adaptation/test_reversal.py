import itertools
import math

import pytest
import torch

from gh_downstream.adaptation import GradientReversal, reversal_schedule, scale_gradient


@pytest.mark.parametrize("strength", [0.0, 0.1, 1.0, 2.5])
def test_reversal_is_the_identity_forward_and_minus_strength_backward(strength):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    incoming = torch.randn(3, 4, dtype=torch.float64)
    y = GradientReversal(strength)(x)
    torch.testing.assert_close(y, x, rtol=0, atol=0)
    y.backward(incoming)
    torch.testing.assert_close(x.grad, -strength * incoming, rtol=0, atol=0)


def test_strength_can_be_set_during_training_and_is_not_in_the_state_dict():
    layer = GradientReversal(0.0)
    layer.strength = 0.5
    x = torch.ones(2, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.tolist() == [-0.5, -0.5]
    assert layer.state_dict() == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradient_keeps_its_type(dtype):
    x = torch.ones(2, dtype=dtype, requires_grad=True)
    scale_gradient(x, 0.25).sum().backward()
    assert x.grad.dtype == dtype
    assert x.grad.tolist() == [0.25, 0.25]


def test_second_derivatives_are_scaled_alike():
    x = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(scale_gradient(x, -0.5).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert first.item() == pytest.approx(-0.5 * 3 * 4)
    # The inner derivative is scaled by the factor of the first pass and of the second.
    assert second.item() == pytest.approx(0.25 * 6 * 2)


def test_what_lies_before_learns_the_opposite_of_what_lies_behind():
    torch.manual_seed(0)
    trunk, head = torch.nn.Linear(4, 3), torch.nn.Linear(3, 1)
    x = torch.randn(5, 4)
    head(trunk(x)).sum().backward()
    plain_trunk, plain_head = trunk.weight.grad.clone(), head.weight.grad.clone()
    trunk.zero_grad()
    head.zero_grad()
    head(GradientReversal(0.3)(trunk(x))).sum().backward()
    torch.testing.assert_close(trunk.weight.grad, -0.3 * plain_trunk)
    torch.testing.assert_close(head.weight.grad, plain_head)


def test_schedule_rises_from_zero_towards_one():
    values = [reversal_schedule(step / 100) for step in range(101)]
    assert values[0] == 0.0
    assert all(a < b for a, b in itertools.pairwise(values))
    assert values[-1] == pytest.approx(math.tanh(5.0))
    assert values[-1] < 1.0
    assert reversal_schedule(0.5, gamma=0.0) == 0.0


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_schedule_refuses_progress_outside_of_zero_to_one(progress):
    with pytest.raises(ValueError, match="between 0 and 1"):
        reversal_schedule(progress)


def test_negative_strength_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        GradientReversal(-1.0)
