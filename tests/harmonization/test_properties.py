"""The properties that TorchJD asserts of aggregators, asserted of the weightings here over families of matrices.

The rows of a matrix ``[m, n]`` are gradients. As TorchJD samples them, it is random of full or lower rank, or has a
combination of rows that vanishes: with positive weights (strongly stationary), or with some weights of zero (weakly).
"""

import pytest
import torch

from gh_downstream import GH, GHPlusPlus, GHPlusPlusOfficial, Sum, as_torchjd

PAIRS = [
    GH(),
    GHPlusPlus(),
    GHPlusPlus(0.2),
    GHPlusPlus("adaptive"),
    GHPlusPlus(guard=True),
    GHPlusPlus(0.2, guard=True),
]
MANY = [GH(), GHPlusPlus(), GHPlusPlus("adaptive")]
SHAPES = [(3, 3, 3), (4, 3, 2), (9, 11, 5), (9, 11, 9), (5, 40, 5)]
SEEDS = range(20)


def normal(m, n, rank, seed):
    """A random matrix of a rank."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(k, rank, dtype=torch.float64, generator=generator) for k in (m, n))
    return left @ right.T


def stationary(m, n, seed, zeros):
    """A random matrix of rank ``m - 1``, whose rows add up to zero with positive weights, of which some are zero."""
    matrix = normal(m, n, m, seed)
    weights = torch.rand(m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1
    weights[:zeros] = 0.0
    return matrix - weights[:, None] * (weights @ matrix) / (weights @ weights)


def pairs():
    """Two gradients at every angle, of equal and of very different norms, and in one dimension."""
    for seed in SEEDS:
        for ratio in (1.0, 1e-3, 30.0):
            matrix = normal(2, 2 + seed % 7, 2, seed)
            yield matrix * torch.tensor([[ratio], [1.0]])
        yield normal(2, 3, 1, seed)


def families(weighting):
    yield from pairs()
    if weighting in MANY:
        for seed in SEEDS:
            for m, n, rank in SHAPES:
                yield normal(m, n, rank, seed)
            yield stationary(4, 20, seed, zeros=seed % 3)


def aggregate(weighting, matrix):
    return weighting(matrix @ matrix.T) @ matrix


def rounding(matrix):
    """What an update may be off by: the sine of opposite gradients, 1e-8 to rounding, is divided by ``s_min``."""
    return (1e-7 if torch.linalg.matrix_rank(matrix) == len(matrix) else 1e-4) * matrix.norm().item()


@pytest.mark.parametrize("weighting", PAIRS, ids=repr)
def test_the_update_is_finite_also_of_zeros(weighting):
    shapes = [(2, 1), (2, 5)] + [(m, n) for m, n, _ in SHAPES] * (weighting in MANY)
    for matrix in [*families(weighting), *(torch.zeros(shape, dtype=torch.float64) for shape in shapes)]:
        update = aggregate(weighting, matrix)
        assert update.shape == matrix.shape[1:]
        assert update.isfinite().all()


@pytest.mark.parametrize(
    "weighting", [w for w in PAIRS if w == GH() or "adaptive" in repr(w) or "guard" in repr(w)], ids=repr
)
def test_the_update_of_two_tasks_conflicts_with_neither(weighting):
    for matrix in pairs():
        update = aggregate(weighting, matrix)
        norms = matrix.norm(dim=1)
        assert (matrix @ update >= -1e-9 * norms * norms.sum()).all()


@pytest.mark.parametrize("weighting", PAIRS, ids=repr)
def test_the_update_scales_with_the_gradients(weighting):
    for matrix in families(weighting):
        update = aggregate(weighting, matrix)
        for scale in (1e-30, 1e-10, 1e3, 1e15):
            scaled = aggregate(weighting, scale * matrix) / scale
            torch.testing.assert_close(scaled, update, rtol=1e-5, atol=rounding(matrix))


@pytest.mark.parametrize("weighting", [w for w in PAIRS if "0.2" not in repr(w)], ids=repr)
def test_the_order_of_the_tasks_does_not_matter(weighting):
    for matrix in families(weighting):
        order = torch.randperm(len(matrix), generator=torch.Generator().manual_seed(0))
        for permuted in (matrix[order], matrix.flip(0)):
            torch.testing.assert_close(
                aggregate(weighting, permuted),
                aggregate(weighting, matrix),
                rtol=1e-5,
                atol=1e-7 * matrix.norm().item(),
            )


def test_lambda_is_the_first_task_s_share():
    for matrix in pairs():
        turned = aggregate(GHPlusPlus(0.8), matrix.flip(0))
        torch.testing.assert_close(aggregate(GHPlusPlus(0.2), matrix), turned)


@pytest.mark.parametrize("weighting", [Sum(), GH(), GHPlusPlus(), GHPlusPlus(0.2), GHPlusPlusOfficial()], ids=repr)
def test_the_update_is_linear_under_scaling_where_lambda_does_not_look_at_norms(weighting):
    generator = torch.Generator().manual_seed(0)
    for matrix in families(weighting):
        if torch.linalg.matrix_rank(matrix) < len(matrix):
            continue  # Exactly opposite gradients are cut off by s_min.
        first, second = torch.rand(2, len(matrix), 1, dtype=torch.float64, generator=generator) + 0.01
        found = aggregate(weighting, (0.3 * first + 2.0 * second) * matrix)
        expected = 0.3 * aggregate(weighting, first * matrix) + 2.0 * aggregate(weighting, second * matrix)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7 * matrix.norm().item())


@pytest.mark.parametrize("weighting", PAIRS, ids=repr)
def test_the_update_of_two_tasks_vanishes_only_where_they_cannot_both_gain(weighting):
    for matrix in pairs():
        opposite = torch.linalg.matrix_rank(matrix) < 2 and (matrix[0] @ matrix[1]) < 0
        vanishes = aggregate(weighting, matrix).norm() < 1e-4 * matrix.norm(dim=1).min()
        assert vanishes == opposite or not vanishes
    for seed in SEEDS:
        weakly = normal(2, 6, 2, seed) * torch.tensor([[0.0], [1.0]])  # The task that is not zero goes its way.
        torch.testing.assert_close(aggregate(weighting, weakly), weakly.sum(0))
        # Opposite gradients: a point that is stationary for both.
        assert aggregate(weighting, stationary(2, 6, seed, zeros=0)).norm() < 1e-4


def test_gh_plus_plus_of_many_tasks_is_as_long_as_its_gradients_at_least():
    for seed in SEEDS:
        matrix = normal(5, 40, 5, seed)
        assert aggregate(GHPlusPlus(), matrix).norm() >= (1 - 1e-9) * matrix.norm()


@pytest.mark.parametrize("weighting", [*PAIRS, GHPlusPlusOfficial()], ids=repr)
def test_through_torchjd_they_are_the_same_and_work_in_float64(weighting):
    aggregation = pytest.importorskip("torchjd.aggregation", reason="needs pip install 'gh_downstream[torchjd]'")
    aggregator = aggregation.GramianWeightedAggregator(as_torchjd(weighting))
    for matrix in pairs():
        torch.testing.assert_close(aggregator(matrix), aggregate(weighting, matrix))
        single = as_torchjd(weighting)((matrix @ matrix.T).float().requires_grad_())
        assert single.dtype == torch.float32
        assert not single.requires_grad
        exact = weighting((matrix @ matrix.T).float().double()).float()
        assert torch.equal(single, exact)


def test_the_gradients_that_torchjd_makes_with_them_require_no_gradient():
    aggregation = pytest.importorskip("torchjd.aggregation", reason="needs pip install 'gh_downstream[torchjd]'")
    autojac = pytest.importorskip("torchjd.autojac")
    parameter = torch.nn.Parameter(torch.ones(3))
    losses = [parameter @ torch.tensor([1.0, 2.0, 0.0]), parameter @ torch.tensor([-1.0, 0.5, 1.0])]
    autojac.backward(losses)
    autojac.jac_to_grad([parameter], aggregation.GramianWeightedAggregator(as_torchjd(GH())))
    assert not parameter.grad.requires_grad
    matrix = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 0.5, 1.0]])
    torch.testing.assert_close(parameter.grad, aggregate(GH(), matrix))
