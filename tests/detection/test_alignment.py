import math

import pytest
import torch

from gh_downstream.adaptation import ImageDiscriminator, PooledImageDiscriminator, domain_loss
from gh_downstream.detection.alignment import AlignmentConfig, DomainAlignment, DomainFeatures

CHANNELS, REGION = 6, 10
SIZES = ((8, 16), (4, 8), (2, 4))
WIDTHS = (CHANNELS,) * len(SIZES)
STRENGTH = 0.25


def features(counts, requires_grad=False, channels=WIDTHS):
    maps = {
        str(level): torch.randn(len(counts), width, *size)
        for level, (width, size) in enumerate(zip(channels, SIZES, strict=True))
    }
    regions = torch.randn(sum(counts), REGION)
    if requires_grad:
        for tensor in (*maps.values(), regions):
            tensor.requires_grad_()
    return DomainFeatures(maps, regions, counts)


def alignment(feature_channels=CHANNELS, **changes):
    """An alignment whose initial logits are not all but zero, without the noise of dropout."""
    settings = {"reversal_strength": STRENGTH, "image_hidden": 16, "instance_hidden": 16, "image_std": 0.5}
    module = DomainAlignment(feature_channels, REGION, AlignmentConfig(**settings | changes)).eval()
    if module.instance_head is not None:
        for parameter in module.instance_head.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return module


def gradients(loss, tensors):
    return torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("share", "reached"), [(0.0, 0), (0.4, 7), (0.5, 7), (0.7, 9), (1.0, 9)])
def test_regions_of_a_share_of_the_source_images_get_a_gradient(share, reached):
    """Of three images with 3, 4 and 2 regions."""
    module, whole = alignment(source_share=share), alignment()
    whole.load_state_dict(module.state_dict())
    source, target = features([3, 4, 2], requires_grad=True), features([5], requires_grad=True)
    losses, expected = module(source, target), whole(source, target)
    torch.testing.assert_close(losses, expected)
    found, of_whole = (
        gradients(x["loss_instance_domain"], [source.regions, target.regions]) for x in (losses, expected)
    )
    torch.testing.assert_close(found[1], of_whole[1])
    torch.testing.assert_close(
        torch.zeros(9, REGION) if found[0] is None else found[0],
        torch.where(torch.arange(9)[:, None] < reached, of_whole[0], 0.0),
    )


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_between_0_and_1(share):
    with pytest.raises(ValueError, match="source_share must be at least 0 and at most 1"):
        AlignmentConfig(source_share=share)


def test_untrained_discriminators_cannot_tell_the_domains_apart():
    module = DomainAlignment(CHANNELS, REGION, AlignmentConfig())
    losses = module(features([3, 4]), features([5]))
    assert list(losses) == ["loss_image_domain", "loss_instance_domain", "loss_consistency"]
    assert losses["loss_image_domain"].item() == pytest.approx(math.log(2), abs=1e-3)
    assert losses["loss_instance_domain"].item() == pytest.approx(math.log(2), abs=0.05)
    assert losses["loss_consistency"].item() == pytest.approx(0.0, abs=1e-2)


def test_losses_are_proportional_to_their_weights():
    one, source, target = alignment(consistency_weight=1.0), features([3, 4]), features([5])
    other = alignment(image_weight=0.5, instance_weight=2.0, consistency_weight=0.25)
    other.load_state_dict(one.state_dict())
    plain, weighted = one(source, target), other(source, target)
    for name, weight in {"loss_image_domain": 0.5, "loss_instance_domain": 2.0, "loss_consistency": 0.25}.items():
        torch.testing.assert_close(weighted[name], weight * plain[name])


@pytest.mark.parametrize("source_counts", [[3], [0, 2], [2, 0, 1]])
@pytest.mark.parametrize("target_counts", [[4], [1, 0]])
def test_any_batch_sizes_and_images_without_regions(source_counts, target_counts):
    module, source, target = alignment(), features(source_counts, True), features(target_counts, True)
    loss = sum(module(source, target).values())
    tensors = [*source.maps.values(), source.regions, *target.maps.values(), target.regions, *module.parameters()]
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(loss, tensors))


def test_repeating_a_domain_changes_no_loss():
    module, source, target = alignment(), features([3, 4]), features([5])
    twice = DomainFeatures(
        {name: level.repeat(2, 1, 1, 1) for name, level in source.maps.items()}, source.regions.repeat(2, 1), [3, 4] * 2
    )
    once, repeated = module(source, target), module(twice, target)
    for name in once:
        torch.testing.assert_close(repeated[name], once[name])


def test_losses_do_not_depend_on_the_size_of_the_image():
    module, source, target = alignment(), features([3]), features([5])
    larger = source._replace(maps={name: level.repeat(1, 1, 2, 3) for name, level in source.maps.items()})
    once, enlarged = module(source, target), module(larger, target)
    for name in once:
        torch.testing.assert_close(enlarged[name], once[name])


def test_each_level_counts_the_same():
    module, source, target = alignment(instance_weight=0.0, consistency_weight=0.0), features([1]), features([1])
    together = module(source, target)["loss_image_domain"]
    alone = [
        module(DomainFeatures([source.maps[level]]), DomainFeatures([target.maps[level]]))["loss_image_domain"]
        for level in source.maps
    ]
    torch.testing.assert_close(together, torch.stack(alone).mean())


@pytest.mark.parametrize("name", ["loss_image_domain", "loss_instance_domain", "loss_consistency"])
def test_gradient_reaches_features_scaled_and_discriminators_unscaled(name):
    reversed_, plain = alignment(), alignment(reversal_strength=0.0)
    plain.load_state_dict(reversed_.state_dict())
    source, target = features([3, 4], True), features([5], True)
    inputs = [*source.maps.values(), source.regions, *target.maps.values(), target.regions]
    ours = gradients(reversed_(source, target)[name], [*inputs, *reversed_.parameters()])
    plain.reversal_strength = 1.0 if name == "loss_consistency" else -1.0  # a factor of one in either case
    expected = gradients(plain(source, target)[name], [*inputs, *plain.parameters()])
    factor = STRENGTH if name == "loss_consistency" else -STRENGTH
    assert any(gradient is not None and gradient.count_nonzero() for gradient in ours[: len(inputs)])
    for k, (gradient, reference) in enumerate(zip(ours, expected, strict=True)):
        assert (gradient is None) == (reference is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, (factor if k < len(inputs) else 1.0) * reference)


def test_a_step_of_the_features_confuses_the_discriminator_and_one_of_the_discriminator_does_not():
    module, source, target = alignment(instance_weight=0.0, consistency_weight=0.0), features([1], True), features([1])
    loss = module(source, target)["loss_image_domain"]
    level, weight = source.maps["0"], module.image_head[2].weight
    level_gradient, weight_gradient = gradients(loss, [level, weight])
    moved = source._replace(maps={**source.maps, "0": level - 0.1 * level_gradient / level_gradient.norm()})
    assert module(moved, target)["loss_image_domain"] > loss
    with torch.no_grad():
        weight -= 0.1 * weight_gradient / weight_gradient.norm()
    assert module(source, target)["loss_image_domain"] < loss


def test_consistency_gradient_lets_the_discriminators_agree():
    module, source, target = alignment(consistency_weight=1.0), features([3], True), features([5])
    loss = module(source, target)["loss_consistency"]
    (gradient,) = gradients(loss, [source.regions])
    moved = source._replace(regions=source.regions - 0.1 * gradient / gradient.norm())
    assert module(moved, target)["loss_consistency"] < loss


@pytest.mark.parametrize(
    ("off", "losses", "children"),
    [
        ({"image_weight": 0.0, "consistency_weight": 0.0}, ["loss_instance_domain"], ["instance_head"]),
        ({"instance_weight": 0.0, "consistency_weight": 0.0}, ["loss_image_domain"], ["image_head"]),
        ({"consistency_weight": 0.0}, ["loss_image_domain", "loss_instance_domain"], ["image_head", "instance_head"]),
        ({"image_weight": 0.0, "instance_weight": 0.0, "consistency_weight": 0.0}, [], []),
    ],
)
def test_parts_of_weight_zero_are_not_built(off, losses, children):
    module = alignment(**off)
    assert [name for name, _ in module.named_children()] == children
    assert list(module(features([3]), features([2]))) == losses


def test_one_discriminator_for_all_levels_or_for_whole_images():
    assert isinstance(alignment().image_head, ImageDiscriminator)
    pooled = alignment(pooled=True)
    assert isinstance(pooled.image_head, PooledImageDiscriminator)
    assert all(loss.isfinite() for loss in pooled(features([3, 0]), features([5])).values())


@pytest.mark.parametrize("pooled", [False, True])
def test_the_discriminator_of_each_level_sees_that_level_alone(pooled):
    channels = (3, 6, 9)
    module = alignment(channels, per_level=True, pooled=pooled, instance_weight=0.0, consistency_weight=0.0)
    source, target = features([1], channels=channels), features([2], channels=channels)
    together = module(source, target)["loss_image_domain"]
    alone = [
        domain_loss(head(source.maps[level]), head(target.maps[level]))
        for level, head in zip(source.maps, module.image_head, strict=True)
    ]
    torch.testing.assert_close(together, torch.stack(alone).mean())
    widths = [next(head.parameters()).shape[1] for head in module.image_head]
    assert widths == list(channels)


def test_discriminators_of_each_level_agree_with_the_regions_too():
    module, source, target = alignment(WIDTHS, per_level=True), features([3, 0], True), features([5], True)
    losses = module(source, target)
    found = gradients(losses["loss_consistency"], [*source.maps.values(), *module.image_head.parameters()])
    assert all(gradient is not None and gradient.count_nonzero() for gradient in found)


def test_one_discriminator_is_the_same_for_a_number_and_for_a_list_of_channels():
    one, other = alignment(CHANNELS), alignment(WIDTHS)
    other.load_state_dict(one.state_dict())
    source, target = features([3]), features([5])
    for ours, theirs in zip(one(source, target).values(), other(source, target).values(), strict=True):
        assert torch.equal(ours, theirs)


def test_channels_that_do_not_fit_the_discriminators_are_refused():
    with pytest.raises(ValueError, match=r"levels of \[4, 6\] channels: set alignment\.per_level"):
        alignment([4, 6])
    with pytest.raises(ValueError, match="feature_channels is 6 for any number of them: give a list"):
        alignment(6, per_level=True)
    with pytest.raises(ValueError, match="one image-level discriminator cannot read"):
        alignment([])
    alignment([4, 6], image_weight=0.0, consistency_weight=0.0)  # nothing reads the maps
    for per_level in (False, True):
        module = alignment([CHANNELS] * 2, per_level=per_level)
        with pytest.raises(ValueError, match="built for 2 feature levels, but gets 3"):
            module(features([3]), features([5]))


def test_lists_and_dictionaries_of_maps_are_the_same():
    module, source, target = alignment(), features([3]), features([5])
    as_lists = [one._replace(maps=list(one.maps.values())) for one in (source, target)]
    for ours, theirs in zip(module(source, target).values(), module(*as_lists).values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_under_autocast_are_float32_and_close(dtype):
    module, source, target = alignment(), features([3, 4], True), features([5], True)
    expected = module(source, target)
    with torch.autocast("cpu", dtype=dtype):
        losses = module(source, target)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], rtol=0.02, atol=0.002)
    assert all(g.isfinite().all() for g in gradients(sum(losses.values()), [*module.parameters(), source.regions]))


def test_missing_regions_and_different_levels_are_refused():
    module, source, target = alignment(), features([3]), features([5])
    with pytest.raises(ValueError, match="regions are missing"):
        module(DomainFeatures(source.maps), target)
    with pytest.raises(ValueError, match="source has 2 feature levels, but target 3"):
        module(source._replace(maps=list(source.maps.values())[:2]), target)
    with pytest.raises(ValueError, match="1 images and 3 regions"):
        module(source._replace(regions_per_image=[2]), target)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="set consistency_weight to 0"):
        AlignmentConfig(instance_weight=0.0)
    with pytest.raises(ValueError, match="reversal_strength must be at least 0"):
        AlignmentConfig(reversal_strength=-1.0)
