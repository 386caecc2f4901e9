"""The length of the update: of the plain sum, or comparable with it, whatever the method."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gh_downstream import GH, GHPlusPlus, Harmonizer, Sum
from gh_downstream.harmonization import Rescaled, parse_weighting
from gh_downstream.harmonization.torchjd import TORCHJD
from tests.harmonization.networks import TwoHeads, batch

OWN = ("sum", "gh", "gh++", "gh++:official")


def two_tasks(ratio, cosine):
    return torch.tensor([[ratio**2, cosine * ratio], [cosine * ratio, 1.0]], dtype=torch.float64)


def length(weights, gramian):
    return (weights @ gramian @ weights).sqrt().item()


def random_gramians(tasks, count=20):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        scales = 10 ** (2 * torch.rand(tasks, 1, dtype=torch.float64, generator=generator) - 1)
        gradients = scales * torch.randn(tasks, tasks + 3, dtype=torch.float64, generator=generator)
        yield gradients @ gradients.T


@given(ratio=st.floats(0.1, 10), cosine=st.floats(-0.999, 0.999))
def test_the_update_has_the_length_of_the_plain_sum_and_its_own_direction(ratio, cosine):
    gramian = two_tasks(ratio, cosine)
    for name in OWN:
        weights, own = parse_weighting(f"{name}:length=sum")(gramian), parse_weighting(name)(gramian)
        assert length(weights, gramian) == pytest.approx(length(torch.ones(2).double(), gramian), rel=1e-9)
        torch.testing.assert_close(weights[0] * own[1], weights[1] * own[0], rtol=1e-12, atol=1e-12)
        assert weights @ own > 0


@pytest.mark.parametrize("name", sorted(TORCHJD))
@pytest.mark.parametrize("tasks", [2, 4])
def test_every_method_of_torchjd_can_have_the_length_of_the_plain_sum(name, tasks):
    pytest.importorskip("torchjd")
    weighting = parse_weighting(f"{name}:length=sum")
    for gramian in random_gramians(tasks):
        assert length(weighting(gramian), gramian) == pytest.approx(gramian.sum().sqrt().item(), rel=1e-9)


@pytest.mark.parametrize("name", [*OWN, *sorted(TORCHJD.keys() - {"pcd"})])  # which has the length of one gradient
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_orthogonal_gradients_of_one_length_are_about_summed(name, tasks):
    """The scale of a method shows where nothing is to be done: CAGrad with c = 0.5 takes 1 + c of the mean there."""
    pytest.importorskip("torchjd")
    if name == "gh++:official" and tasks > 2:
        pytest.skip("of two tasks")
    weights = parse_weighting(f"{name}:length=tasks")(torch.eye(tasks, dtype=torch.float64))
    torch.testing.assert_close(weights, torch.full_like(weights, 1.5 if name == "cagrad" else 1.0), rtol=1e-3, atol=0)


@given(ratio=st.floats(0.1, 10), cosine=st.floats(-0.99, 0.99))
def test_gh_is_pcgrad_and_rescaled_upgrad_for_two_tasks(ratio, cosine):
    pytest.importorskip("torchjd")
    assume(abs(cosine) > 1e-6)
    gramian = two_tasks(ratio, cosine)
    gh, pcgrad, upgrad = (parse_weighting(f"{name}:length=tasks")(gramian) for name in ("gh", "pcgrad", "upgrad"))
    torch.testing.assert_close(gh, pcgrad, rtol=1e-12, atol=0)
    torch.testing.assert_close(gh, upgrad, rtol=2e-2, atol=0)  # TorchJD's UPGrad adds 1e-4 to the diagonal.


def test_a_method_keeps_its_own_length_by_default():
    gramian = two_tasks(3.0, -0.7)
    assert torch.equal(parse_weighting("gh")(gramian), GH()(gramian))
    assert torch.equal(parse_weighting("gh:length=tasks")(gramian), GH()(gramian))
    assert torch.equal(parse_weighting("mean")(gramian), torch.full((2,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("weighting", [Sum(), GH(), GHPlusPlus()], ids=repr)
@pytest.mark.parametrize("length", ["tasks", "sum"])
@pytest.mark.parametrize("n1", [0.0, 1.0])
def test_vanishing_and_opposite_gradients_have_weights_as_small_as_the_methods(weighting, length, n1):
    for n2 in (0.0, 1.0):
        gramian = torch.tensor([[n1 * n1, -n1 * n2], [-n1 * n2, n2 * n2]], dtype=torch.float64)
        weights = Rescaled(weighting, length)(gramian)
        assert (weights.abs() <= 2 * weighting(gramian).abs()).all()


def test_an_update_of_nothing_but_rounding_is_not_blown_up():
    gradients = torch.tensor([[1.0, 0.1], [-1.0, -0.1]], dtype=torch.float64) * torch.tensor([[3.0], [1.0]])
    weights = Rescaled(GH(), "sum")(gradients @ gradients.T)
    torch.testing.assert_close(weights, GH()(gradients @ gradients.T), rtol=0, atol=0)
    assert weights.abs().max() < 5


@pytest.mark.parametrize("length", ["tasks", "sum"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_overflow_is_not_hidden(length, value):
    weights = Rescaled(GH(), length)(torch.tensor([[value, 1.0], [1.0, 2.0]]))
    assert torch.equal(weights, torch.ones(2))


def test_a_step_has_a_gain_of_one():
    model = TwoHeads()
    report = Harmonizer(parse_weighting("gh++:length=sum"), shared=model.trunk).backward(model(batch()))
    assert report.conflict
    assert report.gain.item() == pytest.approx(1, rel=1e-6)
    assert (report.weights - 1).abs().max() > 1e-3


def test_the_state_of_a_weighting_passes_through():
    pytest.importorskip("torchjd")
    first, second = parse_weighting("gradvac:length=sum"), parse_weighting("gradvac:length=sum")
    gramians = list(random_gramians(2, 6))
    for gramian in gramians[:5]:
        first(gramian)
    assert first.state_dict()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(gramians[5]), second(gramians[5]))
    assert parse_weighting("gh:length=sum").state_dict() == {}


def test_an_unknown_length_is_named():
    with pytest.raises(ValueError, match="own, tasks, sum, got 'longer'"):
        parse_weighting("gh:length=longer")


@pytest.mark.parametrize(
    ("weighting", "length", "error", "message"),
    [
        (GH(), "banana", ValueError, "length is one of tasks, sum, got 'banana'"),
        ("gh", "sum", TypeError, "got 'gh'"),
        (GH, "sum", TypeError, "the class GH"),
    ],
)
def test_arguments_are_checked(weighting, length, error, message):
    with pytest.raises(error, match=message):
        Rescaled(weighting, length)
