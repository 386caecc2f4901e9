"""The domain-adaptive detector: what its losses are of and reach, the fork, what it finds."""

from collections import defaultdict

import pytest

pytest.importorskip("torchvision", reason="needs pip install 'gh_downstream[detection]'")

import torch
import torchvision

from gh_downstream import GH, Harmonizer, Sum
from gh_downstream.detection.alignment import AlignmentConfig
from gh_downstream.detection.native import DomainAdaptiveFasterRCNN, build_detector
from gh_downstream.detection.native.model import adaptive_model
from tests.detection.native.adaptive_models import (
    SMALL_ALIGNMENT,
    adaptive,
    images,
    losses_of,
    reached,
    small,
    targets,
    total,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_training_does_not_move_frozen_statistics():
    model = adaptive()
    before = {name: value.clone() for name, value in model.named_buffers()}
    total(model(images(2), targets(2), images(2))).backward()
    assert before
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


@pytest.mark.parametrize("changes", [{"alignment": AlignmentConfig()}, {"pseudo_weight": 1.0}, {}])
def test_adapting_with_live_batch_norm_warns(changes, caplog):
    adaptive_model(build_detector(small()), **changes)
    assert ("live batch normalization" in caplog.text) == bool(changes)


# Training


def test_losses_of_source_alone_are_torchvisions():
    model = DomainAdaptiveFasterRCNN(build_detector(small(frozen_batch_norm=True)))
    batch, annotations = images(2), targets(2)
    losses = losses_of(model, batch, annotations)
    assert list(losses) == ["task"]
    shifted = [{**annotation, "labels": annotation["labels"] + 1} for annotation in annotations]
    expected = losses_of(model.detector, batch, shifted)
    assert set(losses["task"]) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    for name, loss in expected.items():
        assert torch.equal(losses["task"][name], loss)


DENSE = {
    "retinanet": {"classification", "bbox_regression"},
    "fcos": {"classification", "bbox_regression", "bbox_ctrness"},
}


def dense(name, harmonize_features=None, **changes):
    """As :func:`adaptive`, without regions."""
    torch.manual_seed(0)
    detector = build_detector(small(name=name, frozen_batch_norm=True))
    settings = SMALL_ALIGNMENT | {"instance_weight": 0.0, "consistency_weight": 0.0} | changes
    return adaptive_model(detector, AlignmentConfig(**settings), harmonize_features)


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("boxes", [2, 0])
def test_losses_and_detections_of_dense_detectors_are_torchvisions(name, boxes):
    """Also those of images without boxes. Its labels of such detectors count from 0, as ours do."""
    model, batch = dense(name), images(2)
    annotations = [{key: value[:boxes] for key, value in target.items()} for target in targets(2)]
    losses, expected = model(batch, annotations, images(3)), model.detector(batch, annotations)
    assert set(expected) == DENSE[name]
    assert set(losses["alignment"]) == {"loss_image_domain"}
    assert losses["task"] == {f"loss_{key}": value for key, value in expected.items()}
    assert total(losses).isfinite()
    model.eval().detector.score_thresh = 0.0
    found = model(batch)
    assert all(((image["labels"] >= 0) & (image["labels"] < 8)).all() and len(image["labels"]) for image in found)
    for ours, theirs in zip(found, model.detector(batch), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ("boxes", "scores", "labels"))


@pytest.mark.parametrize("name", DENSE)
def test_dense_detectors_share_their_backbone_alone(name):
    model = dense(name)
    losses = model(images(2), targets(2), images(2))
    task, alignment = (set(reached(sum(losses[group].values()), model)) for group in ("task", "alignment"))
    # The task reads the top of the pyramid too, which has no parameters.
    assert task & alignment == {key for key, _ in model.named_parameters() if key.startswith("detector.backbone.")}
    assert {key.split(".")[0] for key in alignment - task} == {"alignment"}
    total(dense(name, GH())(images(2), targets(2), images(2))).backward()


@pytest.mark.parametrize("name", DENSE)
def test_dense_detectors_have_no_regions_to_align(name):
    with pytest.raises(ValueError, match=r"has no regions to align: set alignment\.instance_weight and"):
        dense(name, instance_weight=1.0)


@pytest.mark.parametrize("name", DENSE)
def test_dense_detectors_refuse_labels_that_they_do_not_know(name):
    wrong = [{"boxes": torch.tensor([[10.0, 10.0, 20.0, 20.0]]), "labels": torch.tensor([8]), "file_name": "bonn.png"}]
    with pytest.raises(ValueError, match=r"bonn\.png: label 8 of box .* is not between 0 and 7"):
        dense(name)(images(1), wrong, images(1))


def test_pixels_as_they_are_in_a_file_mean_what_they_mean_in_floats():
    model, annotations = adaptive(), targets(2)
    stored = [torch.randint(256, (3, 64, 128), dtype=torch.uint8) for _ in range(4)]
    floats = [image.float() / 255 for image in stored]
    ours, theirs = (losses_of(model, x[:2], annotations, x[2:]) for x in (stored, floats))
    assert all(torch.equal(ours[side][name], loss) for side in theirs for name, loss in theirs[side].items())
    model.eval()
    for found, expected in zip(model(stored), model(floats), strict=True):
        assert all(torch.equal(found[key], expected[key]) for key in ("boxes", "scores", "labels"))


def test_target_images_change_no_task_loss():
    # With more samples than there are, nothing is left to the random numbers that the target images use up.
    model = adaptive(config=small(frozen_batch_norm=True, rpn_batch_size=10_000, roi_batch_size=10_000))
    batch = images(2), targets(2)
    with_target = losses_of(model, *batch, images(3))
    assert set(with_target["alignment"]) == {"loss_image_domain", "loss_instance_domain", "loss_consistency"}
    without = losses_of(model, *batch)
    assert list(without) == ["task"]
    for name, loss in without["task"].items():
        assert torch.equal(with_target["task"][name], loss)


@pytest.mark.parametrize(("share", "runs"), [(1.0, [2, 3]), (0.5, [1, 3]), (0.0, [3])])
def test_the_alignment_runs_backward_through_a_share_of_the_source(share, runs):
    model, whole = (adaptive(source_share=x, instance_weight=0, consistency_weight=0) for x in (share, 1.0))
    batch, seen = (images(2), targets(2), images(3)), []

    def follow(module, given, maps):
        maps["0"].register_hook(lambda gradient: seen.append(len(gradient)))

    handle = model.detector.backbone.register_forward_hook(follow)
    losses = losses_of(model, *batch)
    handle.remove()
    torch.testing.assert_close(losses, losses_of(whole, *batch))
    sum(losses["alignment"].values()).backward(retain_graph=True)
    assert sorted(seen) == runs
    report = Harmonizer(GH(), model.shared, model=model).backward({s: sum(x.values()) for s, x in losses.items()})
    assert report.gramian.isfinite().all()


def test_the_fork_needs_the_alignment_on_all_of_the_source():
    with pytest.raises(ValueError, match=r"source_share is 0\.5: set it to 1"):
        adaptive(GH(), source_share=0.5)


def test_labels_of_the_target_are_not_accepted():
    with pytest.raises(TypeError):
        adaptive()(images(1), targets(1), images(1), targets(1))


def test_task_losses_do_not_reach_target_images():
    model, target = adaptive(), [image.requires_grad_() for image in images(2)]
    losses = model(images(2), targets(2), target)
    assert torch.autograd.grad(sum(losses["task"].values()), target, retain_graph=True, allow_unused=True) == (
        None,
        None,
    )
    for loss in losses["alignment"].values():
        assert all(gradient.count_nonzero() for gradient in torch.autograd.grad(loss, target, retain_graph=True))


def test_proposals_of_the_target_are_those_of_the_proposal_network():
    model = adaptive()
    batch, _ = model.detector.transform(images(2))
    maps = model.detector.backbone(batch.tensors)
    expected, _ = model.detector.rpn.eval()(batch, maps)
    for ours, theirs in zip(model._propose(batch, maps), expected, strict=True):
        assert torch.equal(ours, theirs)
        assert not ours.requires_grad


@pytest.mark.parametrize(
    "changes",
    [{}, {"instance_weight": 0.0, "consistency_weight": 0.0}, {"image_weight": 0.0, "consistency_weight": 0.0}],
)
def test_shared_is_what_both_losses_reach(changes):
    model = adaptive(**changes)
    losses = model(images(2), targets(2), images(2))
    task, alignment = (set(reached(sum(losses[group].values()), model)) for group in ("task", "alignment"))
    matched = {name for name, _ in model.named_parameters() if name.startswith(tuple(f"{s}." for s in model.shared))}
    assert task & alignment == matched
    assert {name.split(".")[0] for name in alignment - task} == {"alignment"}


def test_alignment_reaches_the_trunk_reversed_and_the_discriminators_not():
    model = adaptive(consistency_weight=0.0)
    batch = images(2), targets(2), images(2)
    gradients = {}
    for strength in (0.1, -0.1):
        model.alignment.reversal_strength = strength
        gradients[strength] = reached(sum(losses_of(model, *batch)["alignment"].values()), model)
    for name, gradient in gradients[0.1].items():
        sign = 1.0 if name.startswith("alignment.") else -1.0
        torch.testing.assert_close(gradient, sign * gradients[-0.1][name])
    assert gradients[0.1]["detector.backbone.body.conv1.weight"].count_nonzero()


@pytest.mark.parametrize(("source", "target"), [(1, 1), (1, 3), (3, 2)])
def test_any_batch_sizes_with_images_of_different_sizes(source, target):
    model = adaptive()
    source_images = [*images(source - 1), *images(1, 96, 100)]
    losses = model(source_images, targets(source), [*images(target - 1), *images(1, 50, 120)])
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_images_without_boxes():
    model = adaptive()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    for annotations in ([nothing, *targets(1)], [nothing, nothing]):
        losses = model(images(2), annotations, images(1))
        assert total(losses).isfinite()
        assert all(gradient.isfinite().all() for gradient in reached(total(losses), model).values())


@pytest.mark.parametrize("annotations", [targets(1), [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}]])
def test_without_any_proposal(annotations):
    model = adaptive()
    model.detector.rpn.score_thresh = 1.1
    losses = model(images(1), annotations, images(2))
    assert total(losses).isfinite()
    assert all(gradient.isfinite().all() for gradient in reached(total(losses), model).values())
    assert model.eval()(images(1))[0]["boxes"].shape == (0, 4)


def test_training_without_targets_is_refused():
    with pytest.raises(ValueError, match="source_targets"):
        adaptive()(images(1))


def test_impossible_annotations_are_refused():
    wrong = {"boxes": torch.tensor([[10.0, 10.0, 20.0, 20.0]]), "labels": torch.tensor([8]), "file_name": "bonn.png"}
    with pytest.raises(ValueError, match=r"bonn\.png: label 8"):
        adaptive()(images(2), [*targets(1), wrong], images(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_finite_and_close_with_boxes_in_float32(dtype):
    model = adaptive()
    batch = images(2), targets(2), images(2)
    expected = losses_of(model, *batch)
    seen = []
    model.detector.roi_heads.register_forward_pre_hook(lambda module, args: seen.extend(args[1]))
    with torch.autocast("cpu", dtype=dtype):
        losses = losses_of(model, *batch)
    assert {proposals.dtype for proposals in seen} == {torch.float32}
    for group, name in ((g, n) for g in losses for n in losses[g]):
        assert losses[group][name].dtype == torch.float32
        torch.testing.assert_close(losses[group][name], expected[group][name], rtol=0.1, atol=0.05)
    assert all(gradient.isfinite().all() for gradient in reached(total(losses), model).values())
    with torch.autocast("cpu", dtype=dtype):
        assert {found["boxes"].dtype for found in model.eval()(images(1))} == {torch.float32}


def test_autocast_leaves_no_parameter_without_gradient():
    model = adaptive()
    batch = images(2), targets(2), images(2)
    expected = set(reached(total(model(*batch)), model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert set(reached(total(model(*batch)), model)) == expected


# Harmonizing


def test_forked_forward_is_the_unforked_one_and_the_plain_sum_has_its_gradient():
    plain, forked = adaptive(), adaptive(Sum())
    batch = images(2), targets(2), images(3)
    expected, losses = losses_of(plain, *batch), losses_of(forked, *batch)
    for group in expected:
        for name, loss in expected[group].items():
            assert torch.equal(losses[group][name], loss)
    total(expected).backward()
    total(losses).backward()
    for ours, theirs in zip(forked.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("changes", [{}, {"instance_weight": 0.0, "consistency_weight": 0.0}])
def test_fork_reports_each_backward_and_changes_the_trunk_alone(changes):
    plain, forked = adaptive(**changes), adaptive(lambda gramian: torch.tensor([0.0, 1.0]), **changes)
    batch = images(2), targets(2), images(2)
    task = reached(sum(losses_of(plain, *batch)["task"].values()), plain)
    everything = reached(total(losses_of(plain, *batch)), plain)
    assert forked.measurements.report is None
    harmonized = reached(total(losses_of(forked, *batch)), forked)
    report = forked.measurements.report
    assert report.tasks == ("alignment", "task")
    assert all(value > 0 for value in report.norms.tolist())
    # A weighting that drops the alignment leaves the trunk with the gradient of the task, and the heads with their own.
    for name, gradient in harmonized.items():
        expected = task if name.startswith("detector.backbone.") else everything
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("harmonize", ["fork", "parameters"])
def test_harmonized_steps_stay_finite(harmonize):
    model = adaptive(GH() if harmonize == "fork" else None)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    harmonizer = Harmonizer(GH(), model.shared, model=model)
    batch = images(2), targets(2), images(2)
    for _ in range(2):
        optimizer.zero_grad()
        losses = model(*batch)
        if harmonize == "fork":
            total(losses).backward()
        else:
            report = harmonizer.backward({group: sum(losses[group].values()) for group in losses})
            assert report.cosine.isfinite()
        optimizer.step()
    assert model.measurements.total == (2 if harmonize == "fork" else 0)
    assert all(p.isfinite().all() for p in model.parameters())


# Evaluation


@pytest.mark.slow
def test_learns_to_find_boxes_and_labels_in_the_coordinates_of_the_given_image():
    """Two classes by colour, boxes in an image of twice the size that the detector sees."""
    model = DomainAdaptiveFasterRCNN(build_detector(small(num_classes=2, detections_per_image=5)))
    image = torch.full((3, 128, 256), 0.5)
    boxes = torch.tensor([[24.0, 32.0, 88.0, 96.0], [152.0, 40.0, 216.0, 104.0]])
    for (x1, y1, x2, y2), channel in zip(boxes.int().tolist(), (0, 2), strict=True):
        image[:, y1:y2, x1:x2] = 0.0
        image[channel, y1:y2, x1:x2] = 1.0
    annotations = [{"boxes": boxes, "labels": torch.tensor([0, 1])}]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model([image, image], annotations * 2)["task"].values()).backward()
        optimizer.step()
    (found,) = model.eval()([image])
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
    best = defaultdict(list)
    for box, label, score in zip(found["boxes"], found["labels"].tolist(), found["scores"].tolist(), strict=True):
        if score > 0.5:
            best[label].append(box)
    assert sorted(best) == [0, 1]
    for label, found_boxes in best.items():
        overlaps = torchvision.ops.box_iou(torch.stack(found_boxes), boxes[label : label + 1])
        assert overlaps.max() > 0.7


def test_evaluation_returns_one_entry_for_each_image_and_needs_no_targets():
    found = adaptive().eval()([*images(1), *images(1, 200, 100)])
    assert len(found) == 2
    for detections in found:
        assert set(detections) == {"boxes", "labels", "scores"}
        assert detections["labels"].min() >= 0
        assert detections["labels"].max() < 8
    assert found[1]["boxes"][:, 0::2].max() <= 100
    assert found[1]["boxes"][:, 1::2].max() <= 200
    assert found[1]["boxes"].max() > 120
