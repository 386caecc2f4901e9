import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from gh_downstream.adaptation import ImageDiscriminator, InstanceDiscriminator, PooledImageDiscriminator, domain_loss


def test_shapes():
    maps = torch.randn(2, 8, 5, 7)
    assert ImageDiscriminator(8)(maps).shape == (2, 1, 5, 7)
    assert PooledImageDiscriminator(8)(maps).shape == (2, 1)
    assert InstanceDiscriminator(8, 16)(torch.randn(6, 8)).shape == (6, 1)
    assert InstanceDiscriminator(8, 16)(torch.randn(0, 8)).shape == (0, 1)


def test_initial_weights_have_the_documented_deviations():
    torch.manual_seed(0)
    image, instance = ImageDiscriminator(256), InstanceDiscriminator(256)
    documented = {image.conv1: 0.001, image.conv2: 0.001, instance.fc1: 0.01, instance.fc2: 0.01, instance.fc3: 0.05}
    for layer, std in documented.items():
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
        assert layer.bias.count_nonzero() == 0


def test_each_location_is_judged_alone():
    discriminator = ImageDiscriminator(8, std=0.1)
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


def test_instance_dropout_is_off_in_evaluation():
    discriminator = InstanceDiscriminator(8, 64)
    regions = torch.randn(3, 8)
    assert not torch.equal(discriminator(regions), discriminator(regions))
    discriminator.eval()
    assert torch.equal(discriminator(regions), discriminator(regions))


def test_loss_is_the_mean_of_two_cross_entropies_with_source_as_one():
    source, target = torch.randn(7, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    of_source = binary_cross_entropy_with_logits(source, torch.ones_like(source))
    of_target = binary_cross_entropy_with_logits(target, torch.zeros_like(target))
    torch.testing.assert_close(domain_loss(source, target), (of_source + of_target) / 2)


def test_loss_of_a_discriminator_that_cannot_tell_is_log_two():
    assert domain_loss(torch.zeros(3), torch.zeros(50)).item() == pytest.approx(math.log(2))


def test_loss_does_not_depend_on_how_often_a_domain_is_seen():
    source, target = torch.randn(4), torch.randn(6)
    once = domain_loss(source, target)
    torch.testing.assert_close(domain_loss(source.repeat(9), target), once)
    torch.testing.assert_close(domain_loss(source, target.repeat(5)), once)


def test_loss_treats_the_domains_alike():
    source, target = torch.randn(4), torch.randn(6)
    torch.testing.assert_close(domain_loss(source, target), domain_loss(-target, -source))


def test_a_domain_without_logits_adds_nothing_and_breaks_nothing():
    source, target = torch.zeros(0, requires_grad=True), torch.randn(4, requires_grad=True)
    loss = domain_loss(source, target)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * torch.nn.functional.softplus(target).mean().item())
    assert source.grad.shape == (0,)
    assert target.grad.isfinite().all()
    assert domain_loss(torch.zeros(0), torch.zeros(0)).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_of_half_precision_logits_is_taken_in_float32(dtype):
    source, target = torch.full((4000,), -60.0, dtype=dtype), torch.full((10,), 60.0, dtype=dtype)
    loss = domain_loss(source, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(60.0)
