import pytest
import torch

from gh_downstream import GH, Harmonizer
from gh_downstream.harmonization import gramian


def test_the_gramian_is_that_of_the_concatenated_gradients():
    torch.manual_seed(0)
    shapes = [(5, 3), (7,), (), (2, 3, 3, 3)]
    gradients = [[torch.randn(shape) for shape in shapes] for _ in range(3)]
    rows = torch.stack([torch.cat([g.flatten() for g in gradient]) for gradient in gradients]).double()
    torch.testing.assert_close(gramian(gradients), rows @ rows.T, rtol=1e-6, atol=1e-6)


def test_none_is_zero_and_does_not_shift_the_others():
    a, b, c = torch.randn(4), torch.randn(4), torch.randn(4)
    found = gramian([[a, None, c], [None, b, c]])
    expected = gramian([[a, torch.zeros(4), c], [torch.zeros(4), b, c]])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_small_and_large_tensors_of_any_type_are_told_apart_from_those_that_are_not_there():
    torch.manual_seed(0)
    sizes = [(3,), (100_000,), (4, 5), (), (9000,), (7,)]
    dtypes = [torch.float32, torch.float32, torch.bfloat16, torch.float64, torch.float32, torch.float32]
    gradients = [[torch.randn(s, dtype=d) for s, d in zip(sizes, dtypes, strict=True)] for _ in range(3)]
    gradients[1][0] = gradients[2][4] = gradients[0][5] = None
    zeros = [[torch.zeros(s) if g is None else g for g, s in zip(row, sizes, strict=True)] for row in gradients]
    rows = torch.stack([torch.cat([g.double().flatten() for g in row]) for row in zeros])
    torch.testing.assert_close(gramian(gradients), rows @ rows.T, rtol=1e-5, atol=1e-2)


def test_all_none_gives_zeros():
    assert gramian([[None], [None]]).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_memory_layouts_do_not_matter():
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert torch.equal(gramian([[a], [b]]), gramian([[a.to(memory_format=torch.channels_last)], [b]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_wider(dtype):
    # 1e5 ones: a sum in half precision stops at 2048 (fp16) or 256 (bf16), and 300^2 overflows fp16.
    ones = torch.ones(100_000, dtype=dtype)
    large = torch.full((10,), 300.0, dtype=dtype)
    assert gramian([[ones, large]]).item() == 100_000 + 10 * 300.0**2


def test_a_long_vector_keeps_the_cosine_of_opposite_gradients_within_one():
    torch.manual_seed(0)
    a = torch.randn(3_000_000)
    b = -a + 1e-3 * torch.randn(3_000_000)
    exact = (a.double() @ b.double()) / a.double().norm() / b.double().norm()
    found = gramian([[a], [b]])
    cosine = found[0, 1] / (found[0, 0] * found[1, 1]).sqrt()
    assert abs(cosine.item() - exact.item()) < 5e-7
    assert found.dtype == torch.float64


def test_an_overflow_is_not_hidden():
    assert not gramian([[torch.tensor([float("inf")])], [torch.ones(1)]]).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize(
    "exponents", [(-22, -22), (-23, -23), (-30, -38), (-37, 0), (0, -25), (25, 25), (37, -37)], ids=str
)
def test_gradients_at_the_ends_of_the_range_keep_cosine_and_norms(dtype, exponents):
    torch.manual_seed(0)
    a = torch.randn(100_000, dtype=torch.float64)
    b = torch.randn(100_000, dtype=torch.float64) - 0.5 * a
    a, b = ((10.0**e * g).to(dtype) for e, g in zip(exponents, (a, b), strict=True))
    rows = torch.stack([a, b]).to(torch.complex128 if dtype.is_complex else torch.float64)
    found = gramian([[a[:70_000], a[70_000:]], [b[:70_000], b[70_000:]]])
    exact = (rows @ rows.mH).real
    norms = exact.diagonal().sqrt()
    torch.testing.assert_close(found / norms / norms[:, None], exact / norms / norms[:, None], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(GH()(found), GH()(exact), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e-23, 1e30])
def test_tiny_and_large_gradients_are_harmonized_as_others_are(scale):
    plus, minus = torch.tensor([3.0, 1.0, 0.0, 2.0]), torch.tensor([-2.0, 1.0, 0.5, -1.0])
    usual, p = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(4))
    expected = Harmonizer(GH(), usual).backward({"alignment": usual @ plus, "task": usual @ minus})
    report = Harmonizer(GH(), p).backward({"alignment": p @ (scale * plus), "task": p @ (scale * minus)})
    assert report.conflict
    torch.testing.assert_close(report.weights, expected.weights)
    torch.testing.assert_close(p.grad / scale, usual.grad, rtol=1e-5, atol=1e-6)


def test_a_gradient_of_zeros_beside_another_is_zero():
    assert gramian([[torch.zeros(3)], [torch.ones(3)]]).tolist() == [[0.0, 0.0], [0.0, 3.0]]
