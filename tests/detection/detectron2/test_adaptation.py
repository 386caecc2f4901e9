"""What makes a detector domain-adaptive: against Detectron2's own, and what reaches what."""

import copy

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import FrozenBatchNorm2d

from gh_downstream.detection.detectron2.adaptation import by_domain, pseudo_labels
from gh_downstream.harmonization import GH, Sum
from tests.detection.detectron2.adaptive_models import (
    IMAGE_ONLY,
    LAZY,
    STRONG_WEAK,
    WITHOUT,
    YAML,
    assert_same,
    labels_of,
    losses_of,
    model_of,
    plain_of,
    reached,
    source,
    split,
    target,
)

# So many samples that none is left to the random numbers.
ALL = ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100_000, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 100_000)


# The task


@pytest.mark.parametrize("kind", ["fpn", "c4", "cascade", "mask", "mask c4", "retinanet"])
@pytest.mark.parametrize("adapting", [False, True], ids=["alone", "adapting"])
def test_losses_on_source_are_detectron2s_bit_for_bit(kind, adapting):
    batch = source(2, masks="mask" in kind)
    expected = losses_of(plain_of(kind), batch)
    # The weights of the discriminators come last, so that those of the detector are the same.
    model = model_of(kind, *([] if adapting else WITHOUT))
    losses = losses_of(model, batch + (target(3) if adapting else []))
    assert_same(split(losses)[0], expected)
    assert bool(split(losses)[1]) is adapting
    if not adapting:
        assert_same(losses_of(model, batch + target(1)), expected)


@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_what_target_looks_like_changes_no_task_loss_even_with_live_batch_norm(kind, caplog):
    model = model_of(kind, "MODEL.RESNETS.NORM", "BN")
    assert "live batch normalization" in caplog.text
    losses = [losses_of(copy.deepcopy(model), source() + target(2, seed=seed)) for seed in (5, 6)]
    (task, alignment), (other_task, other_alignment) = map(split, losses)
    assert_same(task, other_task)
    assert not torch.equal(alignment["loss_image_domain"], other_alignment["loss_image_domain"])


@pytest.mark.parametrize("method", [(), STRONG_WEAK], ids=["image_instance", "strong_weak"])
@pytest.mark.parametrize(("share", "runs"), [(1.0, [2, 3]), (0.5, [1, 3]), (0.0, [3])])
def test_the_alignment_runs_backward_through_a_share_of_the_source(share, runs, method):
    node = "STRONG_WEAK" if method else "IMAGE_INSTANCE"
    model, whole = (model_of("fpn", *method, f"DA.{node}.SOURCE_SHARE", x) for x in (share, 1.0))
    batch, seen = source(2) + target(3), []

    def follow(module, given, maps):
        maps["p2"].register_hook(lambda gradient: seen.append(len(gradient)))

    handle = model.backbone.register_forward_hook(follow)
    losses = losses_of(model, batch)
    handle.remove()
    torch.testing.assert_close(losses, losses_of(whole, batch))
    sum(split(losses)[1].values()).backward()
    assert sorted(seen) == runs


def test_the_fork_needs_the_alignment_on_all_of_the_source():
    with pytest.raises(ValueError, match=r"source_share is 0\.5: set it to 1.*GH\.MEASURE parameters"):
        model_of("fpn", "DA.IMAGE_INSTANCE.SOURCE_SHARE", 0.5, harmonize_features=GH())


def test_frozen_batch_norm_warns_of_nothing(caplog):
    model_of("fpn")
    model_of("fpn", *WITHOUT, "MODEL.RESNETS.NORM", "BN")
    assert not caplog.records


@pytest.mark.parametrize("kind", ["fpn", "retinanet"])
def test_evaluation_is_detectron2s(kind):
    plain, model = plain_of(kind).eval(), model_of(kind).eval()
    batch = [{"image": x["image"], "height": 128, "width": 256} for x in source(2)]
    for found, expected in zip(model(batch), plain(batch), strict=True):
        assert_same(
            {key: getattr(value, "tensor", value) for key, value in found["instances"].get_fields().items()},
            {key: getattr(value, "tensor", value) for key, value in expected["instances"].get_fields().items()},
        )
        assert found["instances"].image_size == (128, 256)


# The alignment


@pytest.mark.parametrize("kind", [*YAML, *LAZY])
def test_one_step_of_every_architecture(kind):
    model = model_of(kind)
    losses = losses_of(model, source(2, masks="mask" in kind) + target(2))
    expected = {"loss_image_domain", "loss_instance_domain", "loss_consistency"}
    assert set(split(losses)[1]) == ({"loss_image_domain"} if kind in ("retinanet", "fcos") else expected)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [(kind, ()) for kind in [*YAML, *LAZY]]
    + [("fpn", STRONG_WEAK), ("retinanet", STRONG_WEAK), ("fpn", ("DA.IMAGE_INSTANCE.PER_LEVEL", True))],
    ids=str,
)
def test_alignment_reaches_the_features_reversed_and_the_discriminators_not(kind, overrides):
    model = model_of(kind, *overrides, consistency_weight=0.0)
    batch = source(1, masks="mask" in kind) + target(1)
    gradients = {}
    for strength in (0.5, -0.5):
        model.alignment.reversal_strength = strength
        gradients[strength] = reached(split(losses_of(model, batch))[1], model)
    assert {name.split(".")[0] for name in gradients[0.5]} >= {"alignment", "backbone"}
    for name, gradient in gradients[0.5].items():
        sign = 1.0 if name.startswith("alignment.") else -1.0
        torch.testing.assert_close(gradient, sign * gradients[-0.5][name], msg=lambda m, n=name: f"{n}: {m}")
    assert any(g.count_nonzero() for name, g in gradients[0.5].items() if name.startswith("backbone."))


def test_the_aligned_maps_are_those_that_the_heads_read_or_those_that_are_named():
    assert model_of("fpn").align_features == ("p2", "p3", "p4", "p5")
    assert model_of("retinanet").align_features == ("p3", "p4", "p5", "p6", "p7")
    # As the literature does: low-level features against the last ones, of other channels.
    outputs = ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res4"], "DA.FEATURES", ["res2", "res4"])
    for method in (STRONG_WEAK, ("DA.IMAGE_INSTANCE.PER_LEVEL", True)):
        model = model_of("c4", *outputs, *method)
        losses = split(losses_of(model, source(1) + target(1)))[1]
        assert all(loss.isfinite() for loss in losses.values())
    with pytest.raises(
        ValueError, match=r"DA.FEATURES\) res2, res4: .* \[32, 128\] channels: set DA.IMAGE_INSTANCE.PER_LEVEL,"
    ):
        model_of("c4", *outputs)


# Pseudo-labels


@pytest.mark.parametrize("kind", ["fpn", "c4", "cascade", "mask", "mask c4", "retinanet", "fcos"])
def test_pseudo_labels_add_the_classification_losses_of_the_detector(kind):
    model = model_of(kind)
    for_source = losses_of(model, source(2, masks="mask" in kind) + target(2))
    batch = source(2, masks="mask" in kind) + target(2, pseudo=True)
    losses = losses_of(model, batch)
    added = {f"{key}_pseudo" for key in split(for_source)[0] if "cls" in key}
    assert set(losses) - set(for_source) == added
    assert added
    for key in split(for_source)[0]:
        assert torch.equal(losses[key], for_source[key])
    model.pseudo_weight = 0.25
    for key, loss in losses_of(model, batch).items():
        torch.testing.assert_close(loss, (0.25 if key.endswith("_pseudo") else 1.0) * losses[key])
    if "mask" in kind:
        assert model.roi_heads.mask_on


@pytest.mark.parametrize("kind", ["fpn", "mask"])
def test_the_losses_on_pseudo_labels_are_detectron2s_on_target(kind):
    labelled = [{"image": x["image"], "instances": x["pseudo_instances"]} for x in target(2, pseudo=True)]
    expected = losses_of(plain_of("fpn", *ALL), labelled)
    losses = losses_of(model_of(kind, *ALL), source(1, masks=True) + target(2, pseudo=True))
    for key in ("loss_cls", "loss_rpn_cls"):
        torch.testing.assert_close(losses[f"{key}_pseudo"], expected[key])


@pytest.mark.parametrize("kind", ["fpn", "retinanet", "fcos"])
def test_an_image_may_have_no_pseudo_label(kind):
    model = model_of(kind)
    nothing = labels_of(64, 128)[:0]
    for batch in (target(2, pseudo=True), target(2)):
        batch = [*batch[:1], batch[1] | {"pseudo_instances": nothing}]
        batch[0].setdefault("pseudo_instances", nothing)
        losses = losses_of(model, source() + batch)
        assert all(gradient.isfinite().all() for gradient in reached(losses, model).values())


def test_pseudo_labels_alone():
    model = model_of("fpn", *WITHOUT, "TEACHER.LOSS_WEIGHT", 0.5)
    losses = losses_of(model, source() + target(2, pseudo=True))
    assert [key for key in losses if "pseudo" in key] == ["loss_cls_pseudo", "loss_rpn_cls_pseudo"]
    assert model.pseudo_weight == 0.5
    assert model.shared == ["backbone"]


# Burn-in


@pytest.mark.parametrize("overrides", [(), STRONG_WEAK, ("DA.IMAGE_INSTANCE.POOLED", True)], ids=str)
@pytest.mark.parametrize("kind", ["fpn", "retinanet"])
def test_burn_in_is_training_on_source_alone(kind, overrides):
    model, plain = model_of(kind, "DA.BURN_IN_ITERS", 3, *overrides), plain_of(kind)
    batch = source()
    expected = losses_of(plain, batch, 2)
    after = losses_of(copy.deepcopy(model), batch + target(2), 3)
    for ignored in ([], target(2), target(2, pseudo=True)):
        again = copy.deepcopy(model)
        losses = losses_of(again, batch + ignored, 2)
        assert_same(split(losses)[0], expected)
        assert list(losses) == list(after)
        assert all(loss == 0 for loss in split(losses)[1].values())
        assert all(loss > 0 for loss in split(after)[1].values())
        gradients = reached(losses, again)
        reference = reached(expected, plain)
        assert set(gradients) == {name for name, p in again.named_parameters() if p.requires_grad}
        for name, gradient in gradients.items():
            assert torch.equal(gradient, reference.get(name, torch.zeros_like(gradient))), name
    with pytest.raises(ValueError, match=r"DATASETS.TARGET, or set DA.METHOD none"):
        losses_of(model, batch, 3)


def test_burn_in_draws_no_random_numbers_for_the_alignment():
    states = []
    for model in (model_of("fpn", "DA.BURN_IN_ITERS", 3), plain_of("fpn")):
        losses_of(model, source())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


# The fork


@pytest.mark.parametrize("pseudo", [False, True])
@pytest.mark.parametrize("kind", ["fpn", "c4", "retinanet"])
def test_the_forked_forward_is_the_unforked_one_and_the_plain_sum_has_its_gradient(kind, pseudo):
    plain, forked = model_of(kind), model_of(kind, harmonize_features=Sum())
    batch = source(2) + target(3, pseudo)
    expected, losses = losses_of(plain, batch), losses_of(forked, batch)
    assert_same(losses, expected)
    found = reached(losses, forked)
    for name, gradient in reached(expected, plain).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("pseudo", [False, True])
def test_the_fork_is_gh_at_the_features_by_hand(pseudo):
    model, forked = model_of("fpn", **IMAGE_ONLY), model_of("fpn", harmonize_features=GH(), **IMAGE_ONLY)
    # An alignment that is strong enough to count, against the task.
    for each in (model, forked):
        each.alignment.reversal_strength = 20.0
    batch, maps = source(2) + target(2, pseudo), []
    model.backbone.register_forward_hook(lambda module, args, output: maps.extend(output.values()))
    task, alignment = (sum(group.values()) for group in split(losses_of(model, batch)))
    of_alignment, of_task = (
        torch.autograd.grad(loss, maps, retain_graph=True, materialize_grads=True) for loss in (alignment, task)
    )
    a, t = (torch.cat([g.flatten() for g in gradients]).double() for gradients in (of_alignment, of_task))
    opposed = (a @ t).clamp(max=0)
    weights = [float(1 - opposed / (a @ a)), float(1 - opposed / (t @ t))]
    joined = [weights[0] * x + weights[1] * y for x, y in zip(of_alignment, of_task, strict=True)]
    backbone = [p for p in model.backbone.parameters() if p.requires_grad]
    expected = torch.autograd.grad(maps, backbone, joined)
    sum(losses_of(forked, batch).values()).backward()
    report = forked.measurements.report
    assert report.tasks == ("alignment", "task")
    torch.testing.assert_close(report.weights, torch.tensor(weights, dtype=torch.float64), rtol=1e-3, atol=0)
    found = [p.grad for p in forked.backbone.parameters() if p.requires_grad]
    found, expected = (torch.cat([g.flatten() for g in gradients]) for gradients in (found, expected))
    assert (found - expected).norm() < 1e-3 * expected.norm()


def test_the_fork_changes_the_backbone_alone():
    drop = lambda gramian: torch.tensor([0.0, 1.0])  # noqa: E731
    plain, forked = model_of("fpn"), model_of("fpn", harmonize_features=drop)
    batch = source(2) + target(2)
    task = reached(split(losses_of(plain, batch))[0], plain)
    everything = reached(losses_of(plain, batch), plain)
    for name, gradient in reached(losses_of(forked, batch), forked).items():
        expected = task if name.startswith("backbone.") else everything
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_burn_in_does_not_fork():
    model = model_of("fpn", "DA.BURN_IN_ITERS", 1, harmonize_features=GH())
    for iteration, measured in ((0, 0), (1, 1)):
        sum(losses_of(model, source() + target(), iteration).values()).backward()
        assert model.measurements.total == measured


# Precision


@pytest.mark.parametrize("kind", ["fpn", "c4", "retinanet"])
@pytest.mark.parametrize("pseudo", [False, True])
def test_autocast_is_finite_and_leaves_no_parameter_without_gradient(kind, pseudo):
    model = model_of(kind)
    batch = source(2) + target(2, pseudo)
    expected = losses_of(model, batch)
    names = set(reached(expected, model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, batch)
        found = reached(losses, model)
    assert set(found) == names
    assert all(gradient.isfinite().all() for gradient in found.values())
    for key, loss in split(losses)[1].items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[key], rtol=0.1, atol=0.1)


# Checkpoints


def test_checkpoints_load_from_the_plain_model_and_into_it(tmp_path):
    plain, model = plain_of("fpn"), model_of("fpn")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    adapted = {name: value.clone() for name, value in model.state_dict().items()}
    DetectionCheckpointer(plain, str(tmp_path)).save("plain")
    DetectionCheckpointer(model, str(tmp_path)).save("adapted")
    missing = DetectionCheckpointer(model)._load_model(torch.load(tmp_path / "plain.pth", weights_only=True))
    assert {key.split(".")[0] for key in missing.missing_keys} == {"alignment"}
    assert not missing.unexpected_keys
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    extra = DetectionCheckpointer(plain)._load_model(torch.load(tmp_path / "adapted.pth", weights_only=True))
    assert {key.split(".")[0] for key in extra.unexpected_keys} == {"alignment"}
    assert not extra.missing_keys
    for name, value in plain.state_dict().items():
        assert torch.equal(adapted[name], value)
    DetectionCheckpointer(model).load(str(tmp_path / "adapted.pth"))
    assert_same(model.state_dict(), adapted)


def test_frozen_statistics_do_not_move():
    model = model_of("fpn")
    before = {name: value.clone() for name, value in model.named_buffers()}
    sum(losses_of(model, source() + target()).values()).backward()
    assert any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


# Mistakes


def test_what_cannot_be_built():
    with pytest.raises(ValueError, match=r"DA.FEATURES\): \['res9'\] are no outputs of the backbone; it has \['p2'"):
        model_of("fpn", "DA.FEATURES", ["res9"])
    with pytest.raises(ValueError, match=r"GH.MEASURE features\) needs an alignment, but DA.METHOD is none"):
        model_of("fpn", *WITHOUT, harmonize_features=GH())


def test_an_alignment_needs_images_of_the_target():
    with pytest.raises(ValueError, match=r"DATASETS\.TARGET"):
        losses_of(model_of("fpn"), source(2))


def test_aligning_what_is_frozen_is_told_at_the_first_step():
    outputs = ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res4"], "DA.FEATURES", ["res2", "res4"])
    model = model_of("c4", *outputs, *STRONG_WEAK, "MODEL.BACKBONE.FREEZE_AT", 2, "DA.BURN_IN_ITERS", 10)
    with pytest.raises(ValueError, match=r"all layers up to 'res2' are frozen, .* \(MODEL.BACKBONE.FREEZE_AT\)"):
        losses_of(model, source())
    with torch.no_grad():  # a loss to look at
        assert losses_of(model, source(), 10 - 1)["loss_cls"].isfinite()


# A batch of both domains


def test_the_domains_are_told_apart_in_any_order():
    first, second = source(2), target(3)
    assert by_domain([second[0], *first, *second[1:]]) == (first, second)
    assert by_domain([first[0] | {"domain": "source"}])[1] == []


def test_pseudo_labels_are_those_of_all_images_or_of_none():
    device = torch.device("cpu")
    assert pseudo_labels(target(2), device) is None
    assert pseudo_labels([], device) is None
    assert [len(found) for found in pseudo_labels(target(2, pseudo=True), device)] == [2, 2]
    with pytest.raises(ValueError, match='1 of 2 images of target have "pseudo_instances"'):
        pseudo_labels(target(1) + target(1, pseudo=True), device)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (target(2), "needs images of source"),
        ([{"image": torch.zeros(3, 64, 128), "file_name": "a.png"}], r'a.png: no "instances" .* "domain": "target"'),
        ([source(1)[0] | {"domain": "Target"}], r'"domain" is source or target, got \'Target\''),
    ],
    ids=["no source", "no labels", "domain"],
)
def test_what_cannot_be_divided(batch, message):
    with pytest.raises(ValueError, match=message):
        by_domain(batch)
