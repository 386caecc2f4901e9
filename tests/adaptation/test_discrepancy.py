import numpy as np
import pytest
import torch

from gh_downstream.adaptation import coral, mmd, rows
from tests.largest import largest_tensor

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def mmd_oracle(source, target):
    """The definition in numpy, point by point."""
    points = np.concatenate([source, target])
    n, m = len(source), len(target)
    distance = np.array([[np.sum((a - b) ** 2) for b in points] for a in points])
    pairs = np.sort(distance[np.triu_indices(n + m, 1)])
    variance = pairs[(len(pairs) - 1) // 2]  # torch.median takes the lower of the two in the middle
    kernel = np.mean([np.exp(-distance / (2 * f * variance)) for f in BANDWIDTHS], axis=0)
    x, y, between = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
    return x.mean() + y.mean() - 2 * between.mean()


def test_mmd_equals_its_definition():
    generator = np.random.default_rng(0)
    source, target = generator.normal(size=(9, 3)), generator.normal(0.5, 2.0, size=(6, 3))
    ours = mmd(torch.tensor(source), torch.tensor(target))
    assert ours.item() == pytest.approx(mmd_oracle(source, target), rel=1e-9)


def dense_mmd(x, y):
    """The definition on the whole matrix, for its gradient."""
    points = torch.cat([x, y])
    distances = (points[:, None] - points).square().sum(dim=2)
    upper = torch.ones_like(distances).triu(1).bool()
    variance = distances.detach()[upper].median()
    kernel = torch.stack([torch.exp(-distances / (2 * f * variance)) for f in BANDWIDTHS]).mean(dim=0)
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


@pytest.mark.parametrize("entries", [1, 100, 2**20])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (2, 3), (30, 21)])
def test_mmd_in_chunks_has_the_value_and_the_gradient_of_the_whole_matrix(monkeypatch, entries, n, m):
    monkeypatch.setattr(rows, "ENTRIES", entries)
    torch.manual_seed(0)
    x, y = (torch.randn(count, 4, dtype=torch.float64, requires_grad=True) for count in (n, m))
    ours, theirs = mmd(x, y), dense_mmd(x, y)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)
    for a, b in zip(torch.autograd.grad(3 * ours, (x, y)), torch.autograd.grad(3 * theirs, (x, y)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
    with torch.no_grad():
        assert torch.equal(mmd(x, y), ours)


def test_equal_distances_are_counted_each():
    x, y = torch.arange(20.0)[:, None] % 7, torch.arange(20.0)[:, None] % 5
    torch.testing.assert_close(mmd(x, y), dense_mmd(x, y), rtol=1e-5, atol=1e-7)


def test_the_memory_of_mmd_does_not_grow_with_the_square_of_the_batch(monkeypatch):
    monkeypatch.setattr(rows, "ENTRIES", 2**16)
    x, y = torch.randn(1024, 4, requires_grad=True), torch.randn(1024, 4)
    with largest_tensor() as largest:
        mmd(x, y).backward()
    assert largest() <= 2**16


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("everywhere", [False, True])
def test_mmd_of_what_is_not_finite_is_no_number(value, everywhere):
    x = torch.randn(8, 3)
    x[slice(None) if everywhere else 0] = value
    assert mmd(x, torch.randn(8, 3)).isnan()


def test_mmd_of_a_sample_with_itself_is_zero_and_grows_with_the_shift():
    torch.manual_seed(0)
    x = torch.randn(40, 5)
    values = [mmd(x, x + shift).item() for shift in (0.0, 0.5, 1.0, 2.0)]
    assert values[0] == pytest.approx(0.0, abs=1e-6)
    assert values[0] < values[1] < values[2] < values[3] <= 2.0


def test_mmd_sees_a_difference_in_spread_alone():
    torch.manual_seed(0)
    x, same, wider = torch.randn(200, 2), torch.randn(200, 2), 3 * torch.randn(200, 2)
    assert mmd(x, wider) > 5 * mmd(x, same)


def test_mmd_is_never_negative():
    generator = torch.Generator().manual_seed(0)
    draws = [[torch.randn(8, 2, generator=generator) for _ in range(2)] for _ in range(300)]
    assert min(mmd(x, y) for x, y in draws) >= 0.0


def test_mmd_does_not_depend_on_scale_or_on_a_common_shift():
    torch.manual_seed(0)
    x, y = torch.randn(10, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64) + 1
    torch.testing.assert_close(mmd(100 * x, 100 * y), mmd(x, y))
    torch.testing.assert_close(mmd(x + 1000, y + 1000), mmd(x, y))


def test_the_bandwidth_is_a_constant_to_autograd():
    # With a bandwidth that followed the scale, the gradient along the scale would vanish.
    torch.manual_seed(0)
    x, y = torch.randn(10, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64) + 1
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mmd(scale * x, scale * y), scale)
    assert gradient.abs() > 1e-3


@pytest.mark.parametrize("loss", [mmd, coral])
def test_descending_brings_the_samples_together(loss):
    torch.manual_seed(0)
    x, y = torch.randn(30, 3), (2.0 * torch.randn(30, 3) + 1.0).requires_grad_()
    before = loss(x, y)
    (gradient,) = torch.autograd.grad(before, y)
    assert gradient.isfinite().all()
    assert loss(x, y - 0.1 * gradient / gradient.norm()) < before


def test_mmd_of_equal_points_is_zero_with_a_finite_gradient():
    x = torch.ones(4, 3, requires_grad=True)
    loss = mmd(x, torch.ones(5, 3))
    loss.backward()
    assert loss.item() == 0.0
    assert x.grad.isfinite().all()


def test_coral_equals_numpy():
    generator = np.random.default_rng(0)
    source, target = generator.normal(size=(12, 4)), generator.normal(size=(7, 4)) @ generator.normal(size=(4, 4))
    difference = np.cov(source, rowvar=False) - np.cov(target, rowvar=False)
    expected = np.sum(difference**2) / (4 * 4**2)
    assert coral(torch.tensor(source), torch.tensor(target)).item() == pytest.approx(expected, rel=1e-12)


def test_coral_ignores_the_means():
    torch.manual_seed(0)
    x = torch.randn(20, 3, dtype=torch.float64)
    assert coral(x, x + 5.0).item() == pytest.approx(0.0, abs=1e-20)
    assert coral(x, 2.0 * x) > 0


@pytest.mark.parametrize("loss", [mmd, coral])
def test_half_precision_and_autocast_are_computed_in_float32(loss):
    torch.manual_seed(0)
    x, y = torch.randn(20, 8) + 30.0, 2.0 * torch.randn(20, 8) + 30.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(x, y), loss(x.double(), y.double()).float(), rtol=1e-4, atol=0)
        assert loss(x.bfloat16(), y.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("loss", [mmd, coral])
@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ((4, 3), (4, 2), "shapes"),
        ((4,), (4,), "shapes"),
        ((1, 3), (4, 3), "1 of source"),
        ((4, 3), (0, 3), "0 of target"),
    ],
)
def test_wrong_shapes_are_refused(loss, source, target, message):
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(source), torch.zeros(target))


@pytest.mark.parametrize("bandwidths", [(), (0.0,), (1.0, -1.0)])
def test_a_bandwidth_has_to_be_positive(bandwidths):
    with pytest.raises(ValueError, match="bandwidths"):
        mmd(torch.randn(4, 2), torch.randn(4, 2), bandwidths=bandwidths)
