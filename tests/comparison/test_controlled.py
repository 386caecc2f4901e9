"""What the methods promise, on losses in the plane of which everything is known."""

import math

import pytest
import torch

from gh_downstream import GH, GHPlusPlus, GHPlusPlusOfficial, Sum
from gh_downstream.comparison.controlled import TwoQuadratics, descend, opposing_share, remaining_conflict
from gh_downstream.harmonization import Rescaled, parse_weighting

PROBLEMS = [(100, 1.0), (130, 0.3), (130, 5.0), (165, 2.0)]
SAFE = [GH(), GHPlusPlus("adaptive"), GHPlusPlus(guard=True), GHPlusPlus(0.2, guard=True)]
# Midpoints, so that shares of the cells are shares of uniform angles and logarithms of ratios.
ANGLES = [90 + 90 * (k + 0.5) / 40 for k in range(40)]
RATIOS = [10 ** (-1 + 2 * (k + 0.5) / 40) for k in range(40)]


@pytest.mark.parametrize(("angle", "ratio"), PROBLEMS)
def test_the_gradients_at_the_start_are_as_asked_for_and_those_of_the_losses(angle, ratio):
    problem = TwoQuadratics.at(angle, ratio)
    first, second = problem.gradients(problem.start)
    assert (first.norm() / second.norm()).item() == pytest.approx(ratio)
    assert math.degrees(math.acos(first @ second / first.norm() / second.norm())) == pytest.approx(angle)
    point = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    for loss, gradient in zip(problem.losses(point), problem.gradients(point.detach()), strict=True):
        torch.testing.assert_close(torch.autograd.grad(loss, point, retain_graph=True)[0], gradient)


def test_the_distance_to_the_front_is_that_to_the_segment_between_the_minima():
    problem = TwoQuadratics.at(120, 3.0)
    (left, right), top = problem.minima, problem.minima[0, 1]
    assert problem.distance_to_front(problem.minima).abs().max() < 1e-12
    assert problem.distance_to_front((left + 3 * right) / 4) < 1e-12
    assert problem.distance_to_front(problem.start).item() == pytest.approx(top.item())
    beyond = right + torch.tensor([0.3, 0.4])
    assert problem.distance_to_front(beyond).item() == pytest.approx(0.5)


@pytest.mark.parametrize("weighting", SAFE, ids=repr)
def test_some_methods_oppose_no_task_anywhere(weighting):
    conflict = remaining_conflict(weighting, ANGLES, RATIOS)
    assert conflict.min() > -1e-9
    assert opposing_share(conflict) == 0


@pytest.mark.parametrize(
    ("weighting", "share"), [(Sum(), 0.727), (GHPlusPlusOfficial(), 0.727), (GHPlusPlus(0.5), 0.55)], ids=repr
)
def test_the_others_oppose_a_task_as_often_as_stated(weighting, share):
    conflict = remaining_conflict(weighting, ANGLES, RATIOS)
    assert conflict.min() < -0.5
    assert opposing_share(conflict) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(("angle", "ratio"), PROBLEMS)
def test_both_losses_fall_at_every_step_of_gh(angle, ratio):
    problem = TwoQuadratics.at(angle, ratio)
    losses = problem.losses(descend(problem, GH(), 200, 0.02 / max(ratio, 1)))
    assert losses.diff(dim=0).max() < 0


def test_the_plain_sum_lets_a_loss_rise():
    problem = TwoQuadratics.at(150, 5.0)
    changes = problem.losses(descend(problem, Sum(), 5, 0.001)).diff(dim=0)
    assert changes[:, 0].max() < 0
    assert changes[:, 1].min() > 0


@pytest.mark.parametrize(("angle", "ratio"), PROBLEMS)
@pytest.mark.parametrize("weighting", SAFE, ids=repr)
def test_conflict_free_updates_end_at_the_front(weighting, angle, ratio):
    problem = TwoQuadratics.at(angle, ratio)
    rate = 0.02 / max(ratio, 1)
    path = descend(problem, weighting, 600, rate)
    distance = problem.distance_to_front(path[-1]).item()
    # GH's updates vanish at the front, those of GH++ keep the length of the hypotenuse of the two norms.
    slack = 0.01 if isinstance(weighting, GH) else rate * problem.gradients(path[-1]).norm().item()
    assert distance < slack < problem.distance_to_front(problem.start).item() / 3


@pytest.mark.parametrize(("angle", "ratio"), PROBLEMS)
def test_gh_pcgrad_and_upgrad_are_one_path(angle, ratio):
    pytest.importorskip("torchjd")
    from torchjd.aggregation import UPGradWeighting
    from torchjd.linalg import QuadprogProjector

    problem = TwoQuadratics.at(angle, ratio)
    # Without the 1e-4 that TorchJD adds to the diagonal by default.
    upgrad = Rescaled(UPGradWeighting(projector=QuadprogProjector(norm_eps=0.0, reg_eps=0.0)), "tasks")
    gh, pcgrad, twice_upgrad = (
        descend(problem, weighting, 100, 0.01 / max(ratio, 1))
        for weighting in (GH(), parse_weighting("pcgrad"), upgrad)
    )
    torch.testing.assert_close(gh, pcgrad, rtol=0, atol=1e-12)
    torch.testing.assert_close(gh, twice_upgrad, rtol=0, atol=1e-8)
    other = descend(problem, Sum(), 100, 0.01 / max(ratio, 1))
    assert (gh - other).abs().max() > 2e-2


@pytest.mark.parametrize(("angle", "ratio"), [(0, 1), (180, 1), (120, 0), (120, -1)])
def test_problems_that_there_are_not_are_refused(angle, ratio):
    with pytest.raises(ValueError, match=r"angle|norm_ratio"):
        TwoQuadratics.at(angle, ratio)
