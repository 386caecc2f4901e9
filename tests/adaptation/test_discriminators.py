import math
from functools import partial

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from gh_downstream.adaptation import (
    GlobalDiscriminator,
    ImageDiscriminator,
    InstanceDiscriminator,
    LocalDiscriminator,
    PooledImageDiscriminator,
    consistency_loss,
    domain_loss,
    focal_domain_loss,
    least_squares_domain_loss,
)

LOSSES = [domain_loss, least_squares_domain_loss, focal_domain_loss]


def test_shapes():
    maps = torch.randn(2, 8, 5, 7)
    assert ImageDiscriminator(8)(maps).shape == (2, 1, 5, 7)
    assert PooledImageDiscriminator(8)(maps).shape == (2, 1)
    assert LocalDiscriminator(8, 6)(maps).shape == (2, 1, 5, 7)
    assert GlobalDiscriminator(8, 16)(maps).shape == (2, 1)
    assert InstanceDiscriminator(8, 16)(torch.randn(6, 8)).shape == (6, 1)
    assert InstanceDiscriminator(8, 16)(torch.randn(0, 8)).shape == (0, 1)


def test_initial_weights_have_the_documented_deviations():
    torch.manual_seed(0)
    image, instance = ImageDiscriminator(256), InstanceDiscriminator(256)
    documented = {image[0]: 0.001, image[2]: 0.001, instance[0]: 0.01, instance[3]: 0.01, instance[6]: 0.05}
    for layer, std in documented.items():
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
        assert layer.bias.count_nonzero() == 0


def test_hidden_channels_are_those_of_the_paper():
    def widths(discriminator):
        return [layer.out_channels for layer in discriminator.modules() if isinstance(layer, torch.nn.Conv2d)]

    assert widths(LocalDiscriminator(256)) == [256, 128, 1]
    assert widths(GlobalDiscriminator(512)) == [512, 128, 128]


@pytest.mark.parametrize("discriminator", [ImageDiscriminator(8, std=0.1), LocalDiscriminator(8)])
def test_each_location_is_judged_alone(discriminator):
    maps = torch.randn(1, 8, 4, 4)
    changed = maps.clone()
    changed[..., 2, 3] += 1.0
    difference = (discriminator(maps) - discriminator(changed)).abs().flatten() > 0
    assert difference.nonzero().flatten().tolist() == [2 * 4 + 3]


def test_pooled_logit_does_not_depend_on_where_things_are():
    discriminator = PooledImageDiscriminator(8)
    maps = torch.zeros(1, 8, 9, 9)
    shifted = maps.clone()
    maps[..., 2, 2], shifted[..., 5, 6] = 1.0, 1.0
    torch.testing.assert_close(discriminator(maps), discriminator(shifted))


@pytest.mark.parametrize(
    ("discriminator", "shape"), [(InstanceDiscriminator(8, 64), (3, 8)), (GlobalDiscriminator(8, 64), (3, 8, 9, 9))]
)
def test_dropout_is_off_in_evaluation(discriminator, shape):
    features = torch.randn(shape)
    discriminator.train()
    assert not torch.equal(discriminator(features), discriminator(features))
    discriminator.eval()
    assert torch.equal(discriminator(features), discriminator(features))


def test_each_image_is_judged_alone_and_as_in_evaluation():
    discriminator, maps = GlobalDiscriminator(8, 32, dropout=0.0), torch.randn(3, 8, 12, 20)
    together = discriminator(maps)
    torch.testing.assert_close(torch.cat([discriminator(image) for image in maps.split(1)]), together)
    assert not list(discriminator.buffers())
    discriminator.eval()
    torch.testing.assert_close(discriminator(maps), together)


@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 4), (7, 3)])
def test_small_maps_and_batches_reach_every_weight(images, size):
    discriminator = GlobalDiscriminator(4, 8)
    logits = discriminator(torch.randn(images, 4, *size))
    assert logits.shape == (images, 1)
    logits.sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in discriminator.parameters())


@pytest.mark.parametrize(
    ("discriminator", "loss"),
    [
        (LocalDiscriminator, least_squares_domain_loss),
        (partial(GlobalDiscriminator, dropout=0.0), focal_domain_loss),
    ],
)
@pytest.mark.parametrize("hidden", [32, 128])
def test_a_discriminator_of_any_width_learns_a_shift_with_its_loss(discriminator, loss, hidden):
    torch.manual_seed(0)
    module, shift = discriminator(4, hidden), torch.tensor([1.0, -1.0, 0.5, 0.0])[:, None, None]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.03, momentum=0.9)
    for _ in range(100):
        value = loss(module(torch.randn(2, 4, 8, 8)), module(torch.randn(2, 4, 8, 8) + shift))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    source, target = torch.randn(16, 4, 8, 8), torch.randn(16, 4, 8, 8) + shift
    right = torch.cat([module(source).flatten() > 0, module(target).flatten() < 0]).float().mean()
    assert right > 0.7


def test_loss_is_the_mean_of_two_cross_entropies_with_source_as_one():
    source, target = torch.randn(7, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    of_source = binary_cross_entropy_with_logits(source, torch.ones_like(source))
    of_target = binary_cross_entropy_with_logits(target, torch.zeros_like(target))
    torch.testing.assert_close(domain_loss(source, target), (of_source + of_target) / 2)


def test_least_squares_loss_is_the_mean_of_two_squared_errors_with_source_as_one():
    source, target = torch.randn(7, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    of_source, of_target = (source.sigmoid() - 1).square().mean(), target.sigmoid().square().mean()
    torch.testing.assert_close(least_squares_domain_loss(source, target), (of_source + of_target) / 2)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_loss_is_the_cross_entropy_times_a_power_of_the_error(gamma):
    source, target = torch.randn(7, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    of_source = ((1 - source.sigmoid()) ** gamma * -source.sigmoid().log()).mean()
    of_target = (target.sigmoid() ** gamma * -(1 - target.sigmoid()).log()).mean()
    torch.testing.assert_close(focal_domain_loss(source, target, gamma), (of_source + of_target) / 2)


def test_focal_loss_without_focus_is_the_cross_entropy():
    source, target = 10 * torch.randn(7), 10 * torch.randn(3, 2)
    torch.testing.assert_close(focal_domain_loss(source, target, gamma=0.0), domain_loss(source, target))


def test_the_higher_gamma_the_smaller_the_share_of_images_that_are_told_apart():
    easy, hard = torch.tensor([3.0]), torch.tensor([-0.5])
    shares = [(focal_domain_loss(easy, -easy, g) / focal_domain_loss(hard, -hard, g)).item() for g in (0, 1, 2, 5)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 1e-4 < 1e-2 < shares[0]


def test_a_negative_gamma_is_refused():
    with pytest.raises(ValueError, match="gamma of the focal loss must be at least 0, got -1"):
        focal_domain_loss(torch.zeros(1), torch.zeros(1), gamma=-1.0)


@pytest.mark.parametrize(("loss", "value"), list(zip(LOSSES, (math.log(2), 0.25, math.log(2) / 32), strict=True)))
def test_loss_of_a_discriminator_that_cannot_tell(loss, value):
    assert loss(torch.zeros(3), torch.zeros(50)).item() == pytest.approx(value)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_does_not_depend_on_how_often_a_domain_is_seen(loss):
    source, target = torch.randn(4), torch.randn(6)
    once = loss(source, target)
    torch.testing.assert_close(loss(source.repeat(9), target), once)
    torch.testing.assert_close(loss(source, target.repeat(5)), once)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_treats_the_domains_alike(loss):
    source, target = torch.randn(4), torch.randn(6)
    torch.testing.assert_close(loss(source, target), loss(-target, -source))


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_falls_as_logits_move_to_the_side_of_their_domain(loss):
    source, target = torch.randn(9, requires_grad=True), torch.randn(7, requires_grad=True)
    of_source, of_target = torch.autograd.grad(loss(source, target), [source, target])
    assert (of_source < 0).all()
    assert (of_target > 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_domain_without_logits_adds_nothing_and_breaks_nothing(loss):
    source, target = torch.zeros(0, requires_grad=True), torch.randn(4, requires_grad=True)
    alone = loss(source, target)
    alone.backward()
    assert alone.item() == pytest.approx(loss(-target, target).item() / 2)
    assert source.grad.shape == (0,)
    assert target.grad.isfinite().all()
    assert loss(torch.zeros(0), torch.zeros(0)).item() == 0.0


@pytest.mark.parametrize(
    ("loss", "worst"),
    [
        (domain_loss, 1000.0),
        (least_squares_domain_loss, 1.0),
        *((partial(focal_domain_loss, gamma=gamma), 1000.0) for gamma in (0.0, 0.5, 5.0)),
    ],
)
def test_extreme_logits_have_finite_losses_and_gradients(loss, worst):
    for logit, expected in ((1000.0, 0.0), (-1000.0, worst)):
        source, target = torch.tensor([logit], requires_grad=True), torch.tensor([-logit], requires_grad=True)
        value = loss(source, target)
        assert value.item() == pytest.approx(expected)
        assert all(g.isfinite().all() for g in torch.autograd.grad(value, [source, target]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("loss", "value"), [(domain_loss, 60.0), (least_squares_domain_loss, 1.0), (focal_domain_loss, 60.0)]
)
def test_loss_of_half_precision_logits_is_taken_in_float32(loss, value, dtype):
    source, target = torch.full((4000,), -60.0, dtype=dtype), torch.full((10,), 60.0, dtype=dtype)
    taken = loss(source, target)
    assert taken.dtype == torch.float32
    assert taken.item() == pytest.approx(value)
    assert loss(source.double(), target.double()).dtype == torch.float64


# ---- consistency


def consistency_oracle(image, region, counts):
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
    loss, expected = consistency_loss(image, region, counts), consistency_oracle(image, region, counts)
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
