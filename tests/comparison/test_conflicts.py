"""Conflict told from noise, and what weightings make of it, on gradients whose means are known."""

import math

import pytest
import torch

from gh_downstream.comparison.conflicts import ALL, Batches, Conflict, Updates, measured_lines
from gh_downstream.harmonization import GH, GHPlusPlus, Probe, Report, Sum, parse_weighting
from tests.harmonization.networks import TwoHeads, batch

TWO, THREE = ("alignment", "task"), ("a", "b", "c")


def drawn(angles, norms=(1.0, 1.0), scatter=0.0, count=64, seed=0):
    """Batches of two gradients at angles by layer, with noise of the cosines."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for angle in angles:
        cosines = math.cos(math.radians(angle)) + scatter * torch.randn(count, generator=generator).double()
        product = cosines.clamp(-0.99, 0.99) * norms[0] * norms[1]
        first, second = (torch.full_like(product, norm**2) for norm in norms)
        layers.append(torch.stack([first, product, product, second], -1).reshape(count, 2, 2))
    names = [f"layer{k}" for k in range(len(angles))] if len(angles) > 1 else [ALL]
    return Batches(TWO, names, torch.stack(layers, 1), torch.ones(count, 2, dtype=torch.float64))


def log(batches, weights=(1.0, 1.0)):
    """What a training would log of batches."""
    reports = (Report(batches.tasks, gramian, torch.tensor(weights).double()) for gramian in batches.total)
    return [{"step": k + 1} | {f"gh/{key}": v for key, v in r.as_dict().items()} for k, r in enumerate(reports)]


def test_a_mean_beyond_the_scatter_is_shown_and_noise_is_not():
    found = drawn([97, 90, 83], scatter=0.2, count=128)
    said = {layer: what for (_, layer), what in found.shown.items()}
    assert said["layer0"] == "conflict"
    assert said["layer1"] == "not shown"
    assert said["layer2"] == "agreement"
    assert set(said) == {ALL, "layer0", "layer1", "layer2"}


def test_noise_alone_is_hardly_ever_shown_in_many_layers():
    wrong = [drawn([90] * 8, scatter=0.2, count=32, seed=seed).shown for seed in range(4)]
    assert sum(any(what != "not shown" for (_, layer), what in said.items() if layer != ALL) for said in wrong) <= 1


def test_the_share_of_noise_is_that_of_the_acute_angles():
    assert Conflict((-0.1,) * 7 + (0.1,) * 3, "1 to 1", 0.0).noise == pytest.approx(3 / 7)
    assert Conflict((-0.1,) * 3 + (0.1,) * 7, "1 to 1", 0.0).noise == 1
    assert Conflict((-0.1, -0.2), "1 to 1", 0.0).noise == 0
    assert Conflict((0.1, 0.2), "1 to 1", 0.0).noise == 0


def test_the_parts_of_the_layers_sum_to_the_mean_cosine():
    found = drawn([100, 80, 120], norms=(2.0, 5.0), scatter=0.1).conflicts
    parts = [one.part for (_, layer), one in found.items() if layer != ALL]
    whole = found["alignment – task", ALL]
    assert sum(parts) == pytest.approx(whole.mean) == pytest.approx(whole.part)
    assert whole.norms == "1 to 2.5"


def test_a_layer_that_one_loss_does_not_reach_has_no_cosine():
    batches = drawn([100, 120])
    batches.gramians[:, 1, 0] = batches.gramians[:, 1, :, 0] = 0
    assert {layer for _, layer in batches.conflicts} == {ALL, "layer0"}


@pytest.mark.parametrize("weighting", [Sum(), GH(), GHPlusPlus(), GHPlusPlus("adaptive")], ids=repr)
def test_updates_are_those_of_vectors(weighting):
    vectors = torch.randn(20, 2, 5, generator=torch.Generator().manual_seed(1)).double()
    gramians = vectors @ vectors.transpose(1, 2)
    factors = torch.tensor([[0.3, 1.0]]).double().repeat(20, 1)
    found = Updates.of(weighting, Batches(TWO, [ALL], gramians[:, None], factors))
    for k, (g, gramian) in enumerate(zip(vectors, gramians, strict=True)):
        update, plain = (factors[k] * weighting(gramian)) @ g, factors[k] @ g
        cosine = torch.nn.functional.cosine_similarity(update, plain, dim=0).clamp(-1, 1)
        torch.testing.assert_close(found.turned[k], cosine.acos().rad2deg(), atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(found.gain[k], update.norm() / plain.norm())
        torch.testing.assert_close(found.along[k], torch.nn.functional.cosine_similarity(g, update[None]))


def test_the_turn_stays_below_the_excess_over_a_right_angle_where_one_gradient_is_long():
    for angle in (95, 110, 130):
        found = Updates.of(GH(), drawn([angle], norms=(1.0, 150.0)))
        assert angle - 91 < float(found.turned.median()) <= angle - 90
        assert found.opposed == 0 < Updates.of(Sum(), drawn([angle], norms=(1.0, 150.0))).opposed


def test_a_log_gives_the_batches_back():
    batches = drawn([100], norms=(0.2, 3.0), scatter=0.2)
    torch.testing.assert_close(Batches.of_log(log(batches)).total, batches.total)


def test_a_log_of_three_tasks_gives_the_batches_back():
    vectors = torch.randn(9, 3, 5, generator=torch.Generator().manual_seed(2)).double()
    batches = Batches(THREE, [ALL], (vectors @ vectors.transpose(1, 2))[:, None], torch.ones(9, 3).double())
    lines = log(batches, (1.0, 1.0, 1.0))
    torch.testing.assert_close(Batches.of_log(lines).total, batches.total)
    assert [pair for pair, _ in batches.conflicts] == ["a – b", "a – c", "b – c"]
    without = [{key: value for key, value in line.items() if key.count("/") < 3} for line in lines]
    assert measured_lines([*without, {"step": 10, "total": 1.0}]) == []
    assert measured_lines([*without, *lines]) == lines


def test_too_few_batches_and_those_without_a_gradient_are_told():
    model = TwoHeads()
    probe = Probe("gh", shared=model.trunk)
    with pytest.raises(ValueError, match="noise: 0"):
        Batches.of_probe(probe)
    for seed in range(4):
        probe.weigh(model(batch(seed=seed)))
    assert len(Batches.of_probe(probe).total) == 4
    probe.gramians[0] = probe.gramians[0] * math.inf
    with pytest.raises(ValueError, match="noise: 3"):
        Batches.of_probe(probe)


def test_a_weighting_that_remembers_is_seen_at_its_first_step():
    pytest.importorskip("torchjd")
    batches = drawn([60], scatter=0.3)
    weighting = parse_weighting("gradvac")
    torch.testing.assert_close(Updates.of(weighting, batches).weights, Updates.of(weighting, batches).weights)
