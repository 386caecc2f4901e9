import math

import pytest
import torch

from gh_downstream.adaptation import focal_domain_loss, least_squares_domain_loss
from gh_downstream.detection.alignment import DomainFeatures
from gh_downstream.detection.strong_weak import StrongWeakAlignment, StrongWeakConfig

CHANNELS, SIZES = (4, 6, 8), ((8, 16), (4, 8), (2, 4))
STRENGTH = 0.25
NAMES = ["loss_local_domain", "loss_global_domain"]


def features(images, requires_grad=False, times=1):
    maps = {
        f"res{level}": torch.randn(images, channels, times * height, times * width, requires_grad=requires_grad)
        for level, (channels, (height, width)) in enumerate(zip(CHANNELS, SIZES, strict=True), start=2)
    }
    return DomainFeatures(maps)


def alignment(**changes):
    """A small alignment without the noise of dropout."""
    settings = {"reversal_strength": STRENGTH, "local_hidden": 16, "global_hidden": 32}
    return StrongWeakAlignment(CHANNELS, StrongWeakConfig(**settings | changes)).eval()


def gradients(loss, tensors):
    return torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_discriminators_without_a_clue_have_the_losses_of_a_coin():
    module = alignment()
    for layer in (module.local_head[-1], module.global_head.linear):
        for parameter in layer.parameters():
            torch.nn.init.zeros_(parameter)
    losses = module(features(2), features(3))
    assert list(losses) == NAMES
    assert losses["loss_local_domain"].item() == pytest.approx(0.25)
    assert losses["loss_global_domain"].item() == pytest.approx(math.log(2) / 32)


def test_the_local_loss_reads_the_first_map_and_the_global_one_the_last():
    module, source, target = alignment(), features(2, True), features(1, True)
    losses = module(source, target)
    first, last = (source.maps["res2"], target.maps["res2"]), (source.maps["res4"], target.maps["res4"])
    local, whole = [module.local_head(level) for level in first], [module.global_head(level) for level in last]
    torch.testing.assert_close(losses["loss_local_domain"], least_squares_domain_loss(*local))
    torch.testing.assert_close(losses["loss_global_domain"], focal_domain_loss(*whole, gamma=5.0))
    inputs = [*source.maps.values(), *target.maps.values()]
    reached = {
        name: [gradient is not None and bool(gradient.count_nonzero()) for gradient in gradients(losses[name], inputs)]
        for name in NAMES
    }
    assert reached == {NAMES[0]: [True, False, False] * 2, NAMES[1]: [False, False, True] * 2}


def test_gamma_reaches_the_global_loss_alone():
    one, other = alignment(), alignment(gamma=0.0)
    other.load_state_dict(one.state_dict())
    source, target = features(2), features(2)
    ours, theirs = one(source, target), other(source, target)
    torch.testing.assert_close(ours["loss_local_domain"], theirs["loss_local_domain"])
    assert ours["loss_global_domain"] < theirs["loss_global_domain"] / 2


def test_dropout_disturbs_the_global_loss_alone_and_may_be_turned_off():
    source, target = features(2), features(2)
    for dropout in (0.5, 0.0):
        module = alignment(global_dropout=dropout).train()
        once, again = module(source, target), module(source, target)
        assert torch.equal(once["loss_local_domain"], again["loss_local_domain"])
        assert torch.equal(once["loss_global_domain"], again["loss_global_domain"]) == (dropout == 0.0)


def test_losses_are_proportional_to_their_weights():
    one, other = alignment(), alignment(local_weight=0.5, global_weight=2.0)
    other.load_state_dict(one.state_dict())
    source, target = features(2), features(3)
    plain, weighted = one(source, target), other(source, target)
    for name, weight in zip(NAMES, (0.5, 2.0), strict=True):
        torch.testing.assert_close(weighted[name], weight * plain[name])


def test_repeating_a_domain_changes_no_loss():
    module, source, target = alignment(), features(2), features(1)
    twice = DomainFeatures({name: level.repeat(3, 1, 1, 1) for name, level in source.maps.items()})
    once, repeated = module(source, target), module(twice, target)
    for name in NAMES:
        torch.testing.assert_close(repeated[name], once[name])


def test_the_local_loss_does_not_depend_on_the_size_of_the_image():
    module, source, target = alignment(global_weight=0.0), features(2), features(1)
    larger = DomainFeatures({name: level.repeat(1, 1, 2, 3) for name, level in source.maps.items()})
    torch.testing.assert_close(module(larger, target), module(source, target))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_features_reversed_and_scaled_and_discriminators_as_it_is(name):
    reversed_, plain = alignment(), alignment()
    plain.load_state_dict(reversed_.state_dict())
    plain.reversal_strength = -1.0  # a factor of one
    source, target = features(2, True), features(1, True)
    inputs = [*source.maps.values(), *target.maps.values()]
    ours = gradients(reversed_(source, target)[name], [*inputs, *reversed_.parameters()])
    expected = gradients(plain(source, target)[name], [*inputs, *plain.parameters()])
    for k, (gradient, reference) in enumerate(zip(ours, expected, strict=True)):
        assert (gradient is None) == (reference is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, (-STRENGTH if k < len(inputs) else 1.0) * reference)


@pytest.mark.parametrize(("name", "level"), list(zip(NAMES, ("res2", "res4"), strict=True)))
def test_a_step_of_the_features_confuses_the_discriminator_and_one_of_the_discriminator_does_not(name, level):
    module, source, target = alignment(), features(2, True), features(2)
    loss = module(source, target)[name]
    (gradient,) = gradients(loss, [source.maps[level]])
    moved = DomainFeatures({**source.maps, level: source.maps[level] - 0.1 * gradient / gradient.norm()})
    assert module(moved, target)[name] > loss
    weights = [
        p for p, g in zip(module.parameters(), gradients(loss, [*module.parameters()]), strict=True) if g is not None
    ]
    with torch.no_grad():
        for weight, step in zip(weights, gradients(loss, weights), strict=True):
            weight -= 0.01 * step
    assert module(source, target)[name] < loss


@pytest.mark.parametrize("images", [(1, 1), (1, 3), (2, 0)])
@pytest.mark.parametrize("size", [(1, 1), (2, 4), (5, 7)])
def test_small_maps_and_any_batch_sizes_train(images, size):
    module = alignment().train()
    source, target = (
        DomainFeatures([torch.randn(n, 4, *size), torch.randn(n, 6, 1, 1), torch.randn(n, 8, *size)]) for n in images
    )
    loss = sum(module(source, target).values())
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_one_map_may_be_aligned_both_ways():
    module = StrongWeakAlignment([6], StrongWeakConfig(local_hidden=8, global_hidden=8))
    source, target = DomainFeatures([torch.randn(2, 6, 4, 8)]), DomainFeatures([torch.randn(1, 6, 4, 8)])
    assert list(module(source, target)) == NAMES


@pytest.mark.parametrize(
    ("off", "losses", "children"),
    [
        ({"local_weight": 0.0}, ["loss_global_domain"], ["global_head"]),
        ({"global_weight": 0.0}, ["loss_local_domain"], ["local_head"]),
        ({"local_weight": 0.0, "global_weight": 0.0}, [], []),
    ],
)
def test_parts_of_weight_zero_are_not_built(off, losses, children):
    module = alignment(**off)
    assert [name for name, _ in module.named_children()] == children
    assert list(module(features(1), features(2))) == losses


def test_lists_and_dictionaries_of_maps_are_the_same():
    module, source, target = alignment(), features(2), features(1)
    as_lists = [DomainFeatures(list(one.maps.values())) for one in (source, target)]
    for ours, theirs in zip(module(source, target).values(), module(*as_lists).values(), strict=True):
        assert torch.equal(ours, theirs)


def test_no_regions_are_needed():
    assert alignment().needs_regions is False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_under_autocast_are_float32_and_close(dtype):
    # Larger maps than elsewhere: in bfloat16 on a CPU, torch 2.14 reads memory that nobody wrote in the gradient of the
    # weights of a convolution with stride 2 on a map of one point, and a few in a hundred are not finite.
    module, source, target = alignment(), features(2, True, times=4), features(2, True, times=4)
    expected = module(source, target)
    with torch.autocast("cpu", dtype=dtype):
        losses = module(source, target)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], rtol=0.03, atol=0.002)
    assert all(g.isfinite().all() for g in gradients(sum(losses.values()), [*module.parameters()]))


def test_maps_that_do_not_fit_and_impossible_settings_are_refused():
    module, source, target = alignment(), features(1), features(1)
    fewer = DomainFeatures(target.levels[:2])
    with pytest.raises(ValueError, match="built for 3 feature maps, but gets 2 of target"):
        module(source, fewer)
    with pytest.raises(ValueError, match="built for 3 feature maps, but gets 2 of source"):
        module(fewer, fewer)
    with pytest.raises(ValueError, match="needs one feature map or more"):
        StrongWeakAlignment([], StrongWeakConfig())
    with pytest.raises(ValueError, match="reversal_strength must be at least 0"):
        StrongWeakConfig(reversal_strength=-1.0)
    with pytest.raises(ValueError, match="global_hidden must be at least 8, got 4"):
        StrongWeakConfig(global_hidden=4)
    with pytest.raises(ValueError, match="global_dropout must be at least 0 and below 1"):
        StrongWeakConfig(global_dropout=1.0)
