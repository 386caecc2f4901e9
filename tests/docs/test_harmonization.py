from __future__ import annotations

import math
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import FancyArrowPatch
from torch import Tensor

from gh_downstream.harmonization import GH, GHPlusPlus, Sum
from gh_downstream.reporting.plots import to_png

picture = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "harmonization.py"))
harmonization_figure, turned_gradients = picture["harmonization_figure"], picture["turned_gradients"]


def conflicting(angle: float, norms: tuple[float, float]) -> Tensor:
    theta = math.radians(angle)
    directions = torch.tensor([[1.0, 0.0], [math.cos(theta), math.sin(theta)]], dtype=torch.float64)
    return torch.tensor(norms, dtype=torch.float64)[:, None] * directions


def angle_between(a: Tensor, b: Tensor) -> float:
    cross = a[0] * b[1] - a[1] * b[0]
    return abs(math.degrees(math.atan2(float(cross), float(a @ b))))


angles = st.floats(90.01, 179.9)
norm_pairs = st.tuples(st.floats(0.05, 20), st.floats(0.05, 20))
lambdas = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(angles, norm_pairs, lambdas)
def test_turned_gradients_add_up_to_the_update_of_the_core(
    angle: float, norms: tuple[float, float], lam: float
) -> None:
    gradients = conflicting(angle, norms)
    weightings = {"sum": Sum(), "gh": GH(), "gh++": GHPlusPlus(lam)}
    for method, weighting in weightings.items():
        update = weighting(gradients @ gradients.T) @ gradients
        total = turned_gradients(gradients, method, lam).sum(0)
        torch.testing.assert_close(total, update, rtol=1e-8, atol=1e-8 * max(norms))


@settings(max_examples=60, deadline=None)
@given(angles, norm_pairs, lambdas)
def test_gh_plus_plus_turns_to_a_right_angle_and_keeps_norms(
    angle: float, norms: tuple[float, float], lam: float
) -> None:
    gradients = conflicting(angle, norms)
    turned = turned_gradients(gradients, "gh++", lam)
    assert angle_between(*turned) == pytest.approx(90, abs=1e-6)
    torch.testing.assert_close(turned.norm(dim=1), gradients.norm(dim=1), rtol=1e-8, atol=0)
    assert angle_between(turned[0], gradients[0]) == pytest.approx(lam * (angle - 90), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(angles, norm_pairs)
def test_gh_turns_each_gradient_to_the_normal_of_the_other(angle: float, norms: tuple[float, float]) -> None:
    gradients = conflicting(angle, norms)
    turned = turned_gradients(gradients, "gh")
    assert angle_between(turned[0], gradients[1]) == pytest.approx(90, abs=1e-6)
    assert angle_between(turned[1], gradients[0]) == pytest.approx(90, abs=1e-6)


@pytest.mark.parametrize("method", ["sum", "gh", "gh++"])
def test_without_conflict_nothing_turns(method: str) -> None:
    gradients = conflicting(80, (1, 2))
    assert torch.equal(turned_gradients(gradients, method), gradients)


def test_the_figure_draws_the_updates_of_the_core() -> None:
    figure = harmonization_figure(130, (1.0, 0.5))
    assert [axes.get_title() for axes in figure.axes] == ["Plain sum", "GH", "GH++"]
    gradients = conflicting(130, (1.0, 0.5))
    for axes, weighting, count in zip(figure.axes, [Sum(), GH(), GHPlusPlus()], [3, 5, 5], strict=True):
        arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
        assert len(arrows) == count
        update = weighting(gradients @ gradients.T) @ gradients
        (x, y) = arrows[-1]._posA_posB[1]
        assert math.hypot(x, y) == pytest.approx(float(update.norm()))
    assert "opposes $g_2$" in figure.axes[0].get_xlabel()
    assert "opposes neither" in figure.axes[1].get_xlabel()
    assert "opposes neither" in figure.axes[2].get_xlabel()


@pytest.mark.parametrize(("angle", "norms"), [(91, (1, 1)), (130, (0.3, 1)), (170, (1, 0.2)), (150, (5, 9))])
def test_all_that_is_drawn_is_within_the_panels(angle: float, norms: tuple[float, float]) -> None:
    figure = harmonization_figure(angle, norms)
    assert to_png(figure, dpi=40)
    for axes in figure.axes:
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for patch in axes.patches:
            if isinstance(patch, FancyArrowPatch):
                x, y = patch._posA_posB[1]
                assert left <= x <= right
                assert bottom <= y <= top


@pytest.mark.parametrize("angle", [60, 90, 180])
def test_gradients_without_a_conflict_are_refused(angle: float) -> None:
    with pytest.raises(ValueError, match="over 90 and under 180"):
        harmonization_figure(angle)
