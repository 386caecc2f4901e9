import pytest
import torch

from gh_downstream.adaptation import consistency_loss


def oracle(image, region, counts):
    """The definition as a loop over images, levels and regions."""
    terms, start = [], 0
    for i, count in enumerate(counts):
        for level in range(image.shape[1]):
            terms += [(image[i, level] - region[start + j]).abs() for j in range(count)]
        start += count
    return torch.stack(terms).mean()


@pytest.mark.parametrize("counts", [[4], [3, 5], [0, 4], [4, 0], [2, 0, 7], [1, 1, 1]])
@pytest.mark.parametrize("levels", [1, 4])
def test_equals_a_loop_over_images(counts, levels):
    image = torch.rand(len(counts), levels, dtype=torch.float64, requires_grad=True)
    region = torch.rand(sum(counts), dtype=torch.float64, requires_grad=True)
    loss, expected = consistency_loss(image, region, counts), oracle(image, region, counts)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (image, region)), torch.autograd.grad(expected, (image, region)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_zero_where_all_agree_and_one_at_most():
    assert consistency_loss(torch.tensor([[0.2], [0.7]]), torch.tensor([0.2, 0.2, 0.7]), [2, 1]).item() == 0.0
    assert consistency_loss(torch.zeros(1, 1), torch.ones(3), [3]).item() == 1.0


def test_without_any_region_the_loss_is_zero_and_differentiable():
    image, region = torch.rand(2, 3, requires_grad=True), torch.rand(0, requires_grad=True)
    loss = consistency_loss(image, region, [0, 0])
    loss.backward()
    assert loss.item() == 0.0
    assert image.grad.count_nonzero() == 0


@pytest.mark.parametrize("counts", [[2], [2, 2], [2, 3, 0]])
def test_counts_that_do_not_fit_are_refused(counts):
    with pytest.raises(ValueError, match="2 images and 5 regions"):
        consistency_loss(torch.rand(2, 1), torch.rand(5), counts)
