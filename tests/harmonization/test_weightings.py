"""The properties P1 to P14 of the weightings, over random Gramians."""

import dataclasses
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from gh_downstream import GH, GHPlusPlus, GHPlusPlusOfficial, Sum

norms = st.floats(-6, 6).map(lambda exponent: 10.0**exponent)
angles = st.one_of(st.floats(0, 180), st.floats(90, 180), st.floats(179, 180), st.sampled_from([0.0, 90.0, 180.0]))
lambdas = st.floats(0, 1)
seeds = st.integers(0, 2**32 - 1)
CLOSED_FORMS = [Sum(), GH(), GHPlusPlus(), GHPlusPlus(0.2), GHPlusPlus("adaptive"), GHPlusPlus(0.8, guard=True)]
TWO_TASKS = [*CLOSED_FORMS, GHPlusPlusOfficial()]
MANY_TASKS = [Sum(), GH(), GHPlusPlus(), GHPlusPlus("adaptive")]


def pair(n1: float, n2: float, angle: float) -> Tensor:
    """Two gradients in the plane, of shape [2, 2]; the angle in degrees, exact at 90 and 180."""
    cos, sin = {90.0: (0.0, 1.0), 180.0: (-1.0, 0.0)}.get(
        angle, (math.cos(math.radians(angle)), math.sin(math.radians(angle)))
    )
    return torch.tensor([[n1, 0.0], [n2 * cos, n2 * sin]], dtype=torch.float64)


def frame(m: int, d: int, seed: int) -> Tensor:
    """Random gradients of shape [m, d] with norms between 0.3 and 3 times sqrt(d)."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (torch.rand(m, 1, generator=generator, dtype=torch.float64) - 0.5)
    return scale * torch.randn(m, d, generator=generator, dtype=torch.float64)


def random_gramian(m: int, seed: int) -> Tensor:
    gradients = frame(m, m + 2, seed)
    return gradients @ gradients.T


def turned(n1: float, n2: float, angle: float, lam: float) -> tuple[Tensor, Tensor, Tensor]:
    """The original pair and the pair that is turned to a right angle by explicit rotations, each of shape [2, 2]."""
    gradients = pair(n1, n2, angle)
    delta = math.radians(angle) - math.pi / 2

    def rotate(vector: Tensor, by: float) -> Tensor:
        c, s = math.cos(by), math.sin(by)
        return torch.tensor([[c, -s], [s, c]], dtype=torch.float64) @ vector

    both = torch.stack([rotate(gradients[0], lam * delta), rotate(gradients[1], -(1 - lam) * delta)])
    return gradients, both, both.sum(0)


@pytest.mark.parametrize("weighting", TWO_TASKS, ids=repr)
@given(n1=norms, n2=norms, angle=st.floats(0, 90))
def test_p2_without_conflict_the_weights_are_exactly_one(weighting, n1, n2, angle):
    gradients = pair(n1, n2, min(angle, 89.9999999))
    assert weighting(gradients @ gradients.T).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("weighting", MANY_TASKS, ids=repr)
@given(seed=seeds, m=st.integers(3, 6))
def test_p2_without_conflict_the_weights_of_many_tasks_are_exactly_one(weighting, seed, m):
    gradients = frame(m, 2 * m, seed).abs()
    assert weighting(gradients @ gradients.T).tolist() == [1.0] * m


@given(n1=norms, n2=norms, angle=angles)
def test_p1_p6_gh_is_conflict_free_with_the_paper_s_inner_product(n1, n2, angle):
    gradients = pair(n1, n2, angle)
    update = GH()(gradients @ gradients.T) @ gradients
    sine = math.sin(math.radians(angle))
    for gradient, n in zip(gradients, (n1, n2), strict=True):
        along = (update @ gradient).item()
        assert along >= -1e-9 * n * max(n1, n2)
        if angle > 90:
            assert along == pytest.approx(n**2 * sine**2, rel=1e-9, abs=1e-9 * n * max(n1, n2))


@given(n1=norms, n2=norms, angle=st.floats(90.001, 180), lam=lambdas)
def test_p1_p7_exact_ghpp_is_the_explicit_rotation_of_the_gradients(n1, n2, angle, lam):
    assume(math.sin(math.radians(angle)) > 1e-3)  # Below s_min the length is damped on purpose.
    gradients, rotated, update = turned(n1, n2, angle, lam)
    found = GHPlusPlus(lam)(gradients @ gradients.T) @ gradients
    length = math.hypot(n1, n2)
    # The oracle itself has the properties that the paper promises: a right angle, the norms, the deviations.
    assert (rotated[0] @ rotated[1]).item() == pytest.approx(0, abs=1e-9 * n1 * n2)
    assert rotated.norm(dim=1).tolist() == pytest.approx([n1, n2], rel=1e-12)
    # The error of the update grows as 1/s, the condition of the pair.
    assert (found - update).norm().item() <= 1e-9 * length / math.sin(math.radians(angle)) ** 2
    assert found.norm().item() ** 2 == pytest.approx(n1**2 + n2**2, rel=1e-5)


@given(n1=norms, n2=norms, angle=angles, lam=lambdas)
def test_p8_the_adaptive_lambda_and_the_guard_never_oppose_a_task(n1, n2, angle, lam):
    gradients = pair(n1, n2, angle)
    for weighting in (GHPlusPlus("adaptive"), GHPlusPlus(lam, guard=True)):
        update = weighting(gradients @ gradients.T) @ gradients
        along = gradients @ update
        # Rounding of the angle moves an inner product by 1e-16 of n_i |v|, times 1/s_min at most.
        assert (along >= -1e-12 * gradients.norm(dim=1) * math.hypot(n1, n2)).all()


@given(n1=norms, n2=norms, angle=st.floats(90.01, 179.9), lam=lambdas)
def test_exact_ghpp_is_conflict_free_exactly_where_its_docstring_says(n1, n2, angle, lam):
    gradients = pair(n1, n2, angle)
    along = gradients @ (GHPlusPlus(lam)(gradients @ gradients.T) @ gradients)
    delta = math.radians(angle) - math.pi / 2
    for value, tangent, ratio in (
        (along[0], math.tan(lam * delta), n1 / n2),
        (along[1], math.tan((1 - lam) * delta), n2 / n1),
    ):
        assume(abs(tangent - ratio) > 1e-6 * ratio)
        assert (value >= 0).item() == (tangent <= ratio)


@given(n1=norms, n2=norms, angle=angles, lam=lambdas)
def test_the_guard_keeps_a_lambda_that_is_already_safe(n1, n2, angle, lam):
    gradients = pair(n1, n2, angle)
    gramian = gradients @ gradients.T
    free = GHPlusPlus(lam)(gramian)
    slack = 1e-6 * gradients.norm(dim=1) * math.hypot(n1, n2)
    if (gramian @ free >= slack).all():
        torch.testing.assert_close(GHPlusPlus(lam, guard=True)(gramian), free, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "weighting", [w for w in CLOSED_FORMS if getattr(w, "lam", 0.5) in (0.5, "adaptive")], ids=repr
)
@given(n1=norms, n2=norms, angle=angles)
def test_p3_swapping_two_tasks_swaps_their_weights(weighting, n1, n2, angle):
    gradients = pair(n1, n2, angle)
    gramian = gradients @ gradients.T
    torch.testing.assert_close(weighting(gramian.flip(0, 1)), weighting(gramian).flip(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighting", MANY_TASKS, ids=repr)
@given(seed=seeds, m=st.integers(3, 6))
def test_p3_many_tasks_are_permutation_equivariant(weighting, seed, m):
    gramian = random_gramian(m, seed)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(weighting(gramian[order][:, order]), weighting(gramian)[order], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("weighting", TWO_TASKS, ids=repr)
@given(n1=norms, n2=norms, angle=angles, exponent=st.integers(-20, 30))
def test_p4_a_scale_of_all_losses_changes_nothing(weighting, n1, n2, angle, exponent):
    gradients = pair(n1, n2, angle)
    gramian = gradients @ gradients.T
    # A power of two, as of a GradScaler: not even the rounding changes.
    assert weighting(gramian * 4.0**exponent).tolist() == weighting(gramian).tolist()


@pytest.mark.parametrize("weighting", [GH(), GHPlusPlus()], ids=repr)
@given(seed=seeds, m=st.integers(2, 5))
def test_p5_the_update_is_linear_in_the_scale_of_each_task(weighting, seed, m):
    gradients = frame(m, m + 5, seed)
    scale = 10 ** (4 * torch.rand(m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 2)
    harmonized = weighting(gradients @ gradients.T)[:, None] * gradients
    scaled = scale[:, None] * gradients
    update = weighting(scaled @ scaled.T) @ scaled
    if weighting == GH():
        parts = gradients + torch.stack(
            [sum((-(g @ h).clamp(max=0) / (h @ h) * h for h in gradients), torch.zeros_like(g)) for g in gradients]
        )
    else:
        parts = turned_frame(gradients)
    torch.testing.assert_close(update, scale @ parts, rtol=1e-6, atol=1e-7 * scaled.norm().item())
    torch.testing.assert_close(harmonized.sum(0), parts.sum(0), rtol=1e-6, atol=1e-7 * gradients.norm().item())


def turned_frame(gradients: Tensor) -> Tensor:
    """Closest frame (least squares over unit vectors) whose correlation is max(C, 0), by the polar decomposition."""
    n = gradients.norm(dim=1, keepdim=True)
    unit = gradients / n
    target = (unit @ unit.T).clamp(min=0)
    values, vectors = torch.linalg.eigh(target)
    assume(values.min() > 1e-6)
    root = vectors * values.sqrt() @ vectors.T
    u, _, vh = torch.linalg.svd(root @ unit, full_matrices=False)
    return n * (root @ (u @ vh))


@given(seed=seeds, m=st.integers(2, 5))
def test_p14_ghpp_of_many_tasks_keeps_acute_angles_and_opens_conflicts_to_right_angles(seed, m):
    gradients = frame(m, m + 5, seed)
    parts = turned_frame(gradients)
    before, after = (g / g.norm(dim=1, keepdim=True) for g in (gradients, parts))
    torch.testing.assert_close(after @ after.T, (before @ before.T).clamp(min=0), rtol=0, atol=1e-9)
    update = GHPlusPlus()(gradients @ gradients.T) @ gradients
    torch.testing.assert_close(update, parts.sum(0), rtol=1e-6, atol=1e-8 * gradients.norm().item())


@pytest.mark.parametrize("weighting", [GH(), GHPlusPlus()], ids=repr)
@given(n1=st.floats(0.1, 10), n2=st.floats(0.1, 10), angle=st.floats(0, 179))
def test_many_tasks_reduce_to_two(weighting, n1, n2, angle):
    """A third task that is orthogonal to both leaves the weights of a pair as they are."""
    gradients = torch.cat([pair(n1, n2, angle), torch.zeros(2, 1, dtype=torch.float64)], dim=1)
    gradients = torch.cat([gradients, torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64)])
    expected = torch.cat([weighting((gradients @ gradients.T)[:2, :2]), torch.ones(1, dtype=torch.float64)])
    torch.testing.assert_close(weighting(gradients @ gradients.T), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("weighting", TWO_TASKS, ids=repr)
@given(n1=st.floats(0.1, 10), n2=st.floats(0.1, 10), excess=st.floats(1e-12, 1e-6))
def test_p9_the_weights_are_continuous_at_the_right_angle(weighting, n1, n2, excess):
    gramian = torch.tensor([[n1**2, -excess * n1 * n2], [-excess * n1 * n2, n2**2]], dtype=torch.float64)
    assert (weighting(gramian) - 1).abs().max().item() <= 200 * excess + 1e-15


@pytest.mark.parametrize("weighting", TWO_TASKS, ids=repr)
@pytest.mark.parametrize("scale", [0.0, 1e-10, 1e-5, 1.0, 1e5, 1e10, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_p10_degenerate_gradients_give_finite_weights(weighting, scale, dtype):
    u = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    for second in (u, -u, 0 * u, -1e-3 * u, u.roll(1)):
        gradients = scale * torch.stack([u, second])
        weights = weighting((gradients @ gradients.T).to(dtype))
        assert weights.dtype == dtype
        assert weights.isfinite().all()


@pytest.mark.parametrize("weighting", MANY_TASKS, ids=repr)
@pytest.mark.parametrize("m", [1, 3, 4])
def test_p10_degenerate_gradients_of_many_tasks_give_finite_weights(weighting, m):
    u = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    gradients = torch.stack([u, -u, 0 * u, u][:m])
    weights = weighting(gradients @ gradients.T)
    assert weights.isfinite().all()
    if m > 2:
        assert weights[2] == 1


@pytest.mark.parametrize("weighting", TWO_TASKS, ids=repr)
def test_a_gradient_that_vanishes_leaves_the_other_alone(weighting):
    for gramian in ([[4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, -0.0], [-0.0, 9.0]]):
        assert weighting(torch.tensor(gramian)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("weighting", [*TWO_TASKS, GHPlusPlus(max_weight=2.0)], ids=repr)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_gramian_that_is_not_finite_gives_weights_of_one(weighting, bad):
    for place in ((0, 0), (0, 1), (1, 1)):
        gramian = torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
        gramian[place] = gramian[place[::-1]] = bad
        assert weighting(gramian).tolist() == [1.0, 1.0]


@given(n1=norms, n2=norms)
def test_the_update_vanishes_for_exactly_opposite_gradients_in_gh_and_in_the_adaptive_ghpp(n1, n2):
    gradients = pair(n1, n2, 180.0)
    for weighting in (GH(), GHPlusPlus("adaptive"), GHPlusPlus(guard=True)):
        update = weighting(gradients @ gradients.T) @ gradients
        assert update.norm().item() <= 1e-9 * max(n1, n2)


@given(n1=norms, n2=norms, angle=angles, lam=lambdas)
def test_p12_the_official_variant_is_the_published_formula_and_takes_the_alignment_first(n1, n2, angle, lam):
    gradients = pair(n1, n2, angle)
    gramian = gradients @ gradients.T
    cosine = (gramian[0, 1] / gramian[0, 0].sqrt() / gramian[1, 1].sqrt()).clamp(-1, 1).item()
    expected = [1.0, 1.0]
    if cosine < 0:
        # The published code, in degrees: beta = trade_off * (angle - 90), of opposite sign for the second task.
        excess = math.degrees(math.acos(cosine)) - 90
        first, second = lam * excess, lam * excess + 90 - (excess + 90)
        expected = [1 + 2 * math.sin(math.radians(first / 2)), 1 + 2 * math.sin(math.radians(second / 2))]
    # acos loses half of the digits near 180 degrees; atan2 does not.
    assert GHPlusPlusOfficial(lam)(gramian).tolist() == pytest.approx(expected, abs=1e-7)
    assert expected[0] >= 1 >= expected[1]


@given(lam=st.floats(0, 0.3), angle=st.floats(90.5, 179.5))
def test_the_official_weight_of_the_task_is_negative_beyond_60_degrees_of_its_share(lam, angle):
    share = (1 - lam) * (angle - 90)
    assume(abs(share - 60) > 1e-6)
    gradients = pair(1.0, 1.0, angle)
    assert (GHPlusPlusOfficial(lam)(gradients @ gradients.T)[1] < 0).item() == (share > 60)


@pytest.mark.parametrize("weighting", TWO_TASKS, ids=repr)
@given(n1=st.floats(0.03, 30), n2=st.floats(0.03, 30), angle=st.floats(0, 179))
def test_p13_a_float32_gramian_will_do_up_to_179_degrees(weighting, n1, n2, angle):
    assume(abs(angle - 90) > 1e-3)
    gradients = pair(n1, n2, angle)
    gramian = gradients @ gradients.T
    exact = weighting(gramian)
    # The condition of the weights is 1/s^2, at most 3300 here, in units of 1e-7.
    assert ((weighting(gramian.float()).double() - exact).abs() <= 2e-3 * exact.abs().max()).all()


@pytest.mark.parametrize("kind", [GH, GHPlusPlus, GHPlusPlusOfficial])
@given(n1=norms, n2=norms, angle=angles)
def test_max_weight_caps_and_only_caps(kind, n1, n2, angle):
    gradients = pair(n1, n2, angle)
    gramian = gradients @ gradients.T
    free = kind()(gramian)
    assert kind(max_weight=5.0)(gramian).tolist() == free.clamp(-5, 5).tolist()


def conflict_rate(weighting, cases: int = 20_000) -> float:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(cases, 2, generator=generator, dtype=torch.float64)
    angle = (90 + 90 * uniform[:, 0]).deg2rad()
    ratio = 10 ** (2 * uniform[:, 1] - 1)
    opposed = 0
    for a, r in zip(angle.tolist(), ratio.tolist(), strict=True):
        g12 = r * math.cos(a)
        gramian = torch.tensor([[r * r, g12], [g12, 1.0]], dtype=torch.float64)
        along = gramian @ weighting(gramian)
        opposed += bool((along < -1e-9).any())
    return opposed / cases


@pytest.mark.parametrize(
    ("weighting", "share"),
    [(Sum(), 0.727), (GHPlusPlusOfficial(), 0.727), (GHPlusPlus(), 0.55), (GH(), 0.0), (GHPlusPlus("adaptive"), 0.0)],
    ids=repr,
)
def test_the_share_of_updates_that_oppose_a_task_is_as_documented(weighting, share):
    cases = 2000
    spread = math.sqrt(share * (1 - share) / cases)
    assert conflict_rate(weighting, cases) == pytest.approx(share, abs=4 * spread + 0.003 * (share > 0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GHPlusPlus(1.5), r"lam must be a number in \[0, 1\]"),
        (lambda: GHPlusPlus("adaptiv"), "lam must be a number"),
        (lambda: GHPlusPlus(s_min=0.0), "s_min"),
        (lambda: GHPlusPlusOfficial("adaptive"), "lam must be a number"),
        (lambda: GH(max_weight=0.5), "max_weight must be at least 1"),
        (lambda: GH()(torch.ones(3)), r"shape \[m, m\]"),
        (lambda: GHPlusPlusOfficial()(torch.eye(3)), "two tasks"),
        (lambda: GHPlusPlus(0.3)(torch.eye(3)), "lam=0.5 or lam='adaptive'"),
    ],
)
def test_a_mistake_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [Sum, GH, GHPlusPlus, GHPlusPlusOfficial])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "banana", "0.5"], ids=str)
def test_every_argument_of_every_weighting_is_checked(kind, value):
    for argument in dataclasses.fields(kind):
        if argument.name != "guard" or value is not True:
            with pytest.raises(ValueError, match=argument.name):
                kind(**{argument.name: value})
