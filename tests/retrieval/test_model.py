"""The retrieval model: what its losses are of, chunked encoding, the fork, freezing."""

import copy
import math
import weakref

import pytest
import torch
from torch.nn.functional import normalize

from gh_downstream import GH, GHPlusPlus, Harmonizer, Sum
from gh_downstream.adaptation import mmd
from gh_downstream.retrieval.model import RetrievalModel
from gh_downstream.retrieval.objectives import (
    TaskConfig,
    TripletConfig,
    contrastive_loss,
    positive_pairs,
    triplet_loss,
)
from tests.retrieval.toy_encoder import (
    TERMS,
    ToyEncoder,
    batch,
    flatten,
    gradients,
    model,
    side_sums,
    terms,
    total,
    with_waves,
)


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_losses_are_of_normalised_features():
    ours, inputs = model(terms("mmd", weight=0.1)), batch(captions=3)
    losses = ours(**inputs)
    encoder = ours.encoder
    source, texts, target = (
        normalize(encode(inputs[key]), dim=1)
        for encode, key in (
            (encoder.encode_image, "source_images"),
            (encoder.encode_text, "source_tokens"),
            (encoder.encode_image, "target_images"),
        )
    )
    positives = positive_pairs(inputs["source_groups"], inputs["source_text_groups"])
    expected = {
        "task": {"loss_contrastive": contrastive_loss(source, texts, positives, encoder.logit_scale)},
        "alignment": {"loss_mmd_image": 0.1 * mmd(source, target)},
    }
    torch.testing.assert_close(losses, expected)


def test_the_triplet_loss_is_added_under_a_name_of_its_own():
    inputs, plain = batch(captions=2), model()(**batch(captions=2))["task"]
    ours = model(task=TaskConfig(triplet=TripletConfig(0.5, margin=0.3)))
    losses = ours(**inputs)["task"]
    images, texts = (
        ours.encoder.encode_image(inputs["source_images"]),
        ours.encoder.encode_text(inputs["source_tokens"]),
    )
    positives = positive_pairs(inputs["source_groups"], inputs["source_text_groups"])
    triplet = triplet_loss(normalize(images, dim=1), normalize(texts, dim=1), positives, 0.3)
    torch.testing.assert_close(losses, plain | {"loss_triplet": 0.5 * triplet})
    assert model(task=TaskConfig(triplet=TripletConfig(0.0)))(**inputs)["task"].keys() == plain.keys()


@pytest.mark.parametrize("task", ["contrastive", "sigmoid", TaskConfig(triplet=TripletConfig(0.5))])
def test_consistency_is_the_task_loss_of_noisy_images(task):
    ours, inputs = model(terms("consistency", weight=0.2, noise=0.7), task), batch(captions=2, target=False)
    torch.manual_seed(3)
    losses = ours(**inputs)
    torch.manual_seed(3)
    noisy = inputs["source_images"] + 0.7 * torch.randn_like(inputs["source_images"])
    plain = model(task=task)
    expected = total(plain(**inputs | {"source_images": noisy}))
    torch.testing.assert_close(losses["alignment"], {"loss_consistency_image": 0.2 * expected})
    torch.testing.assert_close(losses["task"], plain(**inputs)["task"])
    losses["alignment"]["loss_consistency_image"].backward()
    (0.2 * expected).backward()
    found = {name: g for name, g in gradients(ours).items() if name.startswith("encoder")}
    assert_same_gradients(found, gradients(plain))
    assert found["encoder.text.2.weight"].norm() > 0
    assert ours.shared == ["encoder.image"]


def test_noise_is_published_by_default_and_drawn_anew():
    term = model(terms("consistency")).alignment.terms["consistency_image"]
    pixels = torch.randn(64, 3, 16, 16)
    torch.manual_seed(0)
    first, second = term.perturb(pixels) - pixels, term.perturb(pixels) - pixels
    assert first.std().item() == pytest.approx(0.3, rel=0.02)
    assert first.mean().item() == pytest.approx(0, abs=0.01)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("on", ["image", "text", "both"])
def test_each_term_reaches_the_towers_that_it_is_on(on):
    ours = model(terms(*TERMS, on=on))
    with torch.no_grad():
        for parameter in ours.encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # Away from the starting model.
    sides = ("image", "text") if on == "both" else (on,)
    losses = ours(**batch())["alignment"]
    assert losses.keys() == {f"loss_{name}_{side}" for name in TERMS for side in sides}
    for name, loss in losses.items():
        ours.zero_grad()
        loss.backward(retain_graph=True)
        reached = {
            key.split(".")[1] for key, g in gradients(ours).items() if g is not None and key.startswith("encoder.")
        }
        assert reached == {name.rpartition("_")[2]}
    assert ours.shared == [f"encoder.{side}" for side in sides]


def test_what_is_missing_or_not_aligned_is_left_out():
    ours, inputs = model(terms("mmd", "distillation", on="both")), batch()
    images_alone = {name: x for name, x in inputs.items() if name != "target_tokens"}
    found = ours(**images_alone)["alignment"]
    assert found.keys() == {"loss_mmd_image", "loss_distillation_image", "loss_distillation_text"}
    assert model(terms("mmd"))(**batch(target=False)).keys() == {"task"}
    assert model()(**inputs).keys() == {"task"}
    encoded = []
    ours = model(terms("mmd"))
    ours.encoder.text.register_forward_hook(lambda module, args, output: encoded.append(len(output)))
    ours(**inputs)
    assert len(encoded) == 1  # The target's captions are not encoded for a term on images.


def test_the_starting_model_is_frozen_and_survives_a_restart():
    ours = model(terms("distillation", on="both"))
    start = copy.deepcopy(ours.alignment.start.state_dict())
    optimizer = torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], lr=0.5)
    for step in range(3):
        optimizer.zero_grad()
        losses = ours.train()(**batch(seed=step))
        if step == 0:
            assert all(loss.item() == pytest.approx(0, abs=1e-12) for loss in losses["alignment"].values())
        total(losses).backward()
        optimizer.step()
    assert not ours.alignment.start.training
    torch.testing.assert_close(ours.alignment.start.state_dict(), start, rtol=0, atol=0)
    assert all(loss > 1e-6 for loss in losses["alignment"].values())
    resumed = model(terms("distillation", on="both"))
    resumed.encoder.image[1].weight.data.zero_()
    resumed.load_state_dict(ours.state_dict())
    torch.testing.assert_close(resumed(**batch()), ours(**batch()), rtol=0, atol=0)


@pytest.mark.parametrize("micro_batch", [1, 3, 8, 100])
@pytest.mark.parametrize("task", ["contrastive", "sigmoid"])
def test_chunked_encoding_changes_nothing(micro_batch, task):
    alignment = terms(*TERMS, on="both") | terms("consistency")
    whole, chunked = (model(alignment, task, micro_batch=n) for n in (None, micro_batch))
    losses = []
    for ours in (whole, chunked):
        torch.manual_seed(0)
        losses.append(ours(**batch(captions=2)))
    torch.testing.assert_close(*losses)
    for sides in losses:
        total(sides).backward()
    assert whole.encoder.logit_scale.grad != 0
    assert_same_gradients(gradients(chunked), gradients(whole))


@pytest.mark.parametrize("scope", ["shared", "all"])
def test_chunked_encoding_changes_nothing_under_the_harmonizer(scope):
    whole, chunked = (model(terms(*TERMS, on="both"), micro_batch=n) for n in (None, 3))
    reports = []
    for ours in (whole, chunked):
        harmonizer = Harmonizer(GHPlusPlus(), ours.shared, model=ours, scope=scope)
        reports.append(harmonizer.backward(side_sums(ours(**batch(captions=2)))))
    assert not torch.equal(reports[0].weights, torch.ones(2, dtype=torch.float64))  # They were in conflict.
    torch.testing.assert_close(reports[1].weights, reports[0].weights)
    torch.testing.assert_close(reports[1].gramian, reports[0].gramian)
    assert_same_gradients(gradients(chunked), gradients(whole))


def test_a_chunk_is_encoded_once_more_for_both_sides_and_not_kept():
    ours, kept = model(terms("mmd"), micro_batch=2), []
    ours.encoder.image[2].register_forward_hook(lambda module, x, output: kept.append(weakref.ref(output)))
    losses = side_sums(ours(**batch()))
    assert not any(activation() is not None for activation in kept)
    chunks = len(kept)
    Harmonizer(GHPlusPlus(), ours.shared, model=ours).backward(losses)
    assert (chunks, len(kept)) == (8, 16)


def test_chunks_draw_the_same_dropout_in_the_second_forward_pass():
    torch.manual_seed(0)
    ours = RetrievalModel(ToyEncoder(dropout=0.5), micro_batch=3).double()
    inputs, epsilon = batch(), 1e-6
    weight = ours.encoder.image[1].weight
    torch.manual_seed(3)
    total(ours(**inputs)).backward()
    direction = weight.grad / weight.grad.norm()
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * epsilon * direction)
            torch.manual_seed(3)
            ends.append(total(ours(**inputs)))
            weight.sub_(sign * epsilon * direction)
    # A chunk draws no other numbers without gradient, so this is the derivative of the very same loss.
    assert ((ends[0] - ends[1]) / (2 * epsilon)).item() == pytest.approx(weight.grad.norm().item(), rel=1e-5)


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 4)])
def test_the_terms_between_the_domains_reach_a_share_of_the_source(share, count, micro_batch):
    alignment, inputs = terms("mmd", "distillation", on="both"), batch()
    ours, whole = model(alignment, micro_batch=micro_batch, source_share=share), model(alignment)
    losses, expected = ours(**inputs), whole(**inputs)
    torch.testing.assert_close(losses, expected)
    encoder = whole.encoder
    for side, encode, key in (("image", encoder.encode_image, "images"), ("text", encoder.encode_text, "tokens")):
        source, target = (normalize(encode(inputs[f"{domain}_{key}"]), dim=1) for domain in ("source", "target"))
        expected["alignment"][f"loss_mmd_{side}"] = mmd(torch.cat([source[:count], source[count:].detach()]), target)
    for sides in ("alignment", "task"):
        for model_, found in ((ours, losses), (whole, expected)):
            model_.zero_grad()
            sum(found[sides].values()).backward(retain_graph=True)
        assert_same_gradients(gradients(ours), gradients(whole))


def test_the_harmonizer_runs_once_more_through_the_share_alone():
    ours, runs = model(terms("mmd"), source_share=0.25), []
    ours.encoder.image.register_forward_hook(
        lambda module, x, features: features.register_hook(lambda gradient: runs.append(len(gradient))) and None
    )
    Harmonizer(GH(), ours.shared, model=ours).backward(side_sums(ours(**batch())))
    assert sorted(runs) == [2, 2, 6, 8]


def test_the_fork_needs_the_alignment_on_all_of_the_source():
    with pytest.raises(ValueError, match=r"source_share is 0\.5: set it to 1"):
        model(terms("mmd"), source_share=0.5, harmonize_features=GH())


@pytest.mark.parametrize("on", ["image", "both"])
def test_a_fork_with_weights_of_one_is_the_plain_sum(on):
    forked, plain = model(terms(*TERMS, on=on), harmonize_features=Sum()), model(terms(*TERMS, on=on))
    losses = [ours(**batch()) for ours in (forked, plain)]
    torch.testing.assert_close(*losses)
    for sides in losses:
        total(sides).backward()
    assert_same_gradients(gradients(forked), gradients(plain))
    assert forked.measurements.total == 1
    assert not plain.measurements.total


def test_the_fork_measures_and_weighs_at_the_aligned_features():
    alignment, inputs = terms("mmd", weight=1.0), batch()
    forked, plain = model(alignment, harmonize_features=GH()), model(alignment)
    total(forked(**inputs)).backward()
    report = forked.measurements.report
    seen = []

    def keep(module, arguments, output):
        seen.append(output)

    handle = plain.encoder.image.register_forward_hook(keep)
    sides = side_sums(plain(**inputs))
    handle.remove()
    # Leaves in place of the normalised features give the gradients at them.
    source, target = (normalize(x, dim=1) for x in seen)
    leaves = [x.detach().requires_grad_() for x in (source, target)]
    texts = normalize(plain.encoder.encode_text(inputs["source_tokens"]), dim=1)
    task = contrastive_loss(leaves[0], texts, torch.eye(8, dtype=torch.bool), plain.encoder.logit_scale)
    of_task = torch.autograd.grad(task, leaves[0], retain_graph=True)[0]
    of_alignment = torch.autograd.grad(mmd(*leaves), leaves)
    cross, first, second = (
        (of_task * of_alignment[0]).sum(),
        sum(g.square().sum() for g in of_alignment),
        of_task.square().sum(),
    )
    torch.testing.assert_close(report.gramian, torch.stack([first, cross, cross, second]).view(2, 2))
    weights = GH()(report.gramian)
    torch.testing.assert_close(report.weights, weights)
    torch.autograd.backward(
        [source, target], [weights[0] * of_alignment[0] + weights[1] * of_task, weights[0] * of_alignment[1]]
    )
    sides["task"].backward(inputs=[*plain.encoder.text.parameters(), plain.encoder.logit_scale])
    assert_same_gradients(gradients(forked), gradients(plain))


@pytest.mark.parametrize("on", ["image", "both"])
def test_the_features_of_noisy_images_are_the_alignments_alone(on):
    alignment, inputs = terms("mmd", on=on) | terms("consistency", weight=0.3), batch()
    forked, plain = model(alignment, harmonize_features=GH()), model()
    forked.alignment.terms["consistency_image"].perturb = with_waves
    sides = forked(**inputs)
    encoder, positives = plain.encoder, torch.eye(8, dtype=torch.bool)

    def leaves():
        noisy = with_waves(inputs["source_images"])
        raw = {
            "image": encoder.encode_image(inputs["source_images"]),
            "text": encoder.encode_text(inputs["source_tokens"]),
            "noisy": encoder.encode_image(noisy),
            "target image": encoder.encode_image(inputs["target_images"]),
            "target text": encoder.encode_text(inputs["target_tokens"]),
        }
        return {name: normalize(x, dim=1).detach().requires_grad_() for name, x in raw.items()}

    x, scale = leaves(), encoder.logit_scale
    task = contrastive_loss(x["image"], x["text"], positives, scale)
    aligned = 0.3 * contrastive_loss(x["noisy"], x["text"], positives, scale)
    for side in ("image", "text") if on == "both" else ("image",):
        aligned = aligned + mmd(x[side], x[f"target {side}"])
    torch.testing.assert_close(total(sides), task + aligned)
    if on == "image":
        x = {name: leaf for name, leaf in x.items() if "text" not in name}
    of_task, of_aligned = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(x.values()), materialize_grads=True)])
        for loss in (task, aligned)
    )
    total(sides).backward()
    report = forked.measurements.report
    rows = torch.stack([of_aligned, of_task])
    torch.testing.assert_close(report.gramian, rows @ rows.T)


@pytest.mark.parametrize("others", [{}, terms("mmd", on="text"), terms("distillation", on="text")])
def test_noisy_images_alone_share_no_features(others):
    ours = model(terms("consistency") | others, harmonize_features=GH())
    with pytest.raises(ValueError, match="needs image features that both sides share, but consistency encodes"):
        ours(**batch())


@pytest.mark.parametrize("task", ["contrastive", "sigmoid"])
def test_every_parameter_that_is_trained_gets_a_gradient(task):
    ours = model(terms(*TERMS, on="both"), task)
    total(ours(**batch())).backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in ours.parameters())
    assert ours.encoder.logit_bias.requires_grad == (task == "sigmoid")


def test_without_target_nothing_is_forked():
    ours = model(terms("mmd"), harmonize_features=GH())
    total(ours(**batch(target=False))).backward()
    assert not ours.measurements.total


@pytest.mark.parametrize(("value", "expected"), [(9.0, math.log(100)), (-1.0, 0.0), (1.0, 1.0)])
def test_logit_scale_is_clamped_in_training_alone(value, expected):
    ours = model()
    with torch.no_grad():
        ours.encoder.logit_scale.fill_(value)
    ours.eval()(**batch())
    assert ours.encoder.logit_scale == value
    ours.train()(**batch())
    assert ours.encoder.logit_scale.item() == pytest.approx(expected)


def test_a_factor_that_came_above_the_limit_is_kept():
    """SigLIP's, 118 say, belongs to the bias that was trained beside it."""
    plain = model()
    with torch.no_grad():
        plain.encoder.logit_scale.fill_(math.log(118))
    ours = RetrievalModel(plain.encoder)
    ours.train()(**batch())
    assert ours.figures["logit_scale"].item() == pytest.approx(118)
    with torch.no_grad():
        ours.encoder.logit_scale.fill_(math.log(130))
    ours.clamp_logit_scale()
    assert ours.encoder.logit_scale.exp().item() == pytest.approx(118)


def test_a_frozen_tower_has_nothing_to_harmonize():
    ours = model(terms("mmd"), harmonize_features=GH())
    ours.encoder.image.requires_grad_(False)
    with pytest.raises(ValueError, match=r"tower is frozen: train encoder\.image"):
        ours(**batch())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: model(micro_batch=0), "micro_batch must be at least 1"),
        (lambda: model(harmonize_features=GH()), "there is no alignment"),
        (lambda: model(terms("mmd", weight=0.0), harmonize_features=GH()), "there is no alignment"),
        (lambda: model()(**batch() | {"source_groups": torch.arange(3)}), "source_groups takes 8 ids"),
        (lambda: model()(**batch() | {"source_text_groups": torch.arange(3)}), "source_text_groups takes 8 ids"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_the_sigmoid_loss_needs_a_bias():
    with pytest.raises(ValueError, match="logit bias"):
        RetrievalModel(ToyEncoder(bias=False), TaskConfig("sigmoid"))


def test_harmonized_training_lowers_the_losses_of_both_sides():
    ours = model(terms("mmd", weight=0.1))
    harmonizer = Harmonizer(GHPlusPlus(), ours.shared, model=ours)
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.01)
    first = {name: loss.item() for name, loss in flatten(ours(**batch())).items()}
    for _ in range(60):
        optimizer.zero_grad()
        harmonizer.backward(side_sums(ours(**batch())))
        optimizer.step()
    last = flatten(ours(**batch()))
    assert all(last[name] < 0.5 * value for name, value in first.items())
