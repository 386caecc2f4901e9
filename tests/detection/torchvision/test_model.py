import logging
from collections import defaultdict

import pytest
import torch
from torch import nn

from gh_downstream import GH, Harmonizer, Sum
from gh_downstream.detection.alignment import AlignmentConfig
from gh_downstream.detection.torchvision import (
    DetectorConfig,
    DomainAdaptiveFasterRCNN,
    build_detector,
    freeze_batch_norm,
)

torchvision = pytest.importorskip("torchvision")

SMALL_ALIGNMENT = {"image_hidden": 16, "image_std": 0.1, "instance_hidden": 16, "instance_regions": 8}


def small(**changes):
    return DetectorConfig.slim(**{"min_size": 64, "max_size": 128, **changes})


def adaptive(harmonize_features=None, config=None, **changes):
    """A small frozen detector with alignment, the same at every call."""
    torch.manual_seed(0)
    detector = build_detector(config or small(frozen_batch_norm=True))
    return DomainAdaptiveFasterRCNN(detector, AlignmentConfig(**SMALL_ALIGNMENT | changes), harmonize_features)


def images(count, height=64, width=128):
    return [torch.rand(3, height, width) for _ in range(count)]


def targets(count):
    boxes = torch.tensor([[10.0, 8.0, 40.0, 40.0], [60.0, 20.0, 100.0, 60.0]])
    return [{"boxes": boxes.clone(), "labels": torch.tensor([0, 7])} for _ in range(count)]


def losses_of(model, *batch):
    """Losses with the random samples of anchors and regions, and dropout, held."""
    torch.manual_seed(1)
    return model(*batch)


def total(losses):
    return sum(loss for group in losses.values() for loss in group.values())


def reached(loss, model):
    """Names and gradients of the parameters that a loss reaches."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), retain_graph=True, allow_unused=True)
    return {name: gradient for name, gradient in zip(trained, found, strict=True) if gradient is not None}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# Building


@pytest.mark.parametrize("backbone", ["slim", "resnet18", "resnet50"])
def test_any_residual_trunk_gives_five_levels(backbone):
    detector = build_detector(small(backbone=backbone, fpn_channels=8, box_head_features=8))
    maps = detector.backbone(torch.zeros(1, 3, 64, 128))
    assert {name: tuple(level.shape) for name, level in maps.items()} == {
        "0": (1, 8, 16, 32),
        "1": (1, 8, 8, 16),
        "2": (1, 8, 4, 8),
        "3": (1, 8, 2, 4),
        "pool": (1, 8, 1, 2),
    }


def test_default_detector_is_torchvisions_own():
    ours = build_detector(DetectorConfig(backbone="resnet50", num_classes=90, frozen_batch_norm=False)).state_dict()
    theirs = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    tracked = {name for name in ours if name.endswith("num_batches_tracked")}
    assert {name: value.shape for name, value in ours.items() if name not in tracked} == {
        name: value.shape for name, value in theirs.items() if not name.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize("layers", range(6))
def test_trainable_layers_count_from_the_end(layers):
    body = build_detector(small(trainable_layers=layers)).backbone.body
    trained = {name.split(".")[0] for name, p in body.named_parameters() if p.requires_grad}
    assert trained == {*["layer4", "layer3", "layer2", "layer1"][:layers], *(["conv1", "bn1"] if layers == 5 else [])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"trainable_layers": 6}, "trainable_layers"),
        ({"anchor_sizes": (8, 16)}, "five levels"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_unknown_backbone_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet19': choose slim or one of .*resnet18"):
        build_detector(small(backbone="resnet19"))


# Weights


@pytest.fixture
def burn_in(tmp_path):
    """A slim model whose batch normalization has seen something, and its checkpoint."""
    model = DomainAdaptiveFasterRCNN(build_detector(small()))
    for _ in range(3):
        model(images(2), targets(2))
    file = tmp_path / "burn_in.pth"
    torch.save({"model": model.state_dict(), "step": 3}, file)
    return model, file


def test_burn_in_loads_into_the_frozen_model(burn_in, caplog):
    live, file = burn_in
    with caplog.at_level(logging.INFO):
        frozen = DomainAdaptiveFasterRCNN(build_detector(small(weights=str(file), frozen_batch_norm=True)))
    assert "loaded" in caplog.text
    assert str(file) in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    x = torch.rand(2, 3, 64, 128)
    live.eval()
    for ours, theirs in zip(frozen.detector.backbone(x).values(), live.detector.backbone(x).values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_state_dict_of_live_batch_norm_loads_strictly_into_the_frozen_model(burn_in):
    live, _ = burn_in
    frozen = DomainAdaptiveFasterRCNN(build_detector(small(frozen_batch_norm=True)))
    frozen.load_state_dict(live.state_dict())
    assert torch.equal(frozen.detector.backbone.body.bn1.running_mean, live.detector.backbone.body.bn1.running_mean)


def test_weights_of_another_number_of_classes_leave_the_predictor_alone(burn_in, caplog):
    live, file = burn_in
    other = build_detector(small(weights=str(file), num_classes=3))
    assert torch.equal(other.rpn.head.cls_logits.weight, live.detector.rpn.head.cls_logits.weight)
    assert other.roi_heads.box_predictor.cls_score.weight.shape[0] == 4
    assert "left at their initial values: roi_heads.box_predictor.bbox_pred.bias" in caplog.text


def test_weights_of_the_trunk_alone_go_into_the_trunk(tmp_path, burn_in):
    live, _ = burn_in
    trunk = live.detector.backbone.body
    torch.save(trunk.state_dict(), tmp_path / "trunk.pth")
    loaded = build_detector(small(weights=str(tmp_path / "trunk.pth"))).backbone.body
    for name, value in trunk.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_weights_of_another_model_are_refused(burn_in):
    _, file = burn_in
    with pytest.raises(ValueError, match=r"burn_in\.pth fill \d+ of \d+ tensors of resnet18"):
        build_detector(small(backbone="resnet18", weights=str(file)))


@pytest.mark.parametrize("content", [b"", b"not a file of tensors"])
def test_corrupt_weights_are_refused(tmp_path, content):
    file = tmp_path / "broken.pth"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.pth: not a file of tensors"):
        build_detector(small(weights=str(file)))


def test_a_file_without_a_state_dict_is_refused(tmp_path):
    torch.save({"step": 3}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: neither a state dict nor a checkpoint"):
        build_detector(small(weights=str(tmp_path / "other.pth")))


def test_unknown_weights_name_the_known_ones():
    with pytest.raises(FileNotFoundError, match=r"weights NONE: there is no such file; .*IMAGENET1K_V1"):
        build_detector(small(backbone="resnet18", weights="NONE"))
    with pytest.raises(FileNotFoundError, match=r"missing\.pth: there is no such file"):
        build_detector(small(weights="missing.pth"))


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"])
def test_weights_of_torchvision_come_from_its_cache(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    resnet = torchvision.models.resnet18(weights=None)
    torch.save(resnet.state_dict(), cache / torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.split("/")[-1])
    body = build_detector(small(backbone="resnet18", weights=name)).backbone.body
    assert torch.equal(body.layer4[1].conv2.weight, resnet.layer4[1].conv2.weight)


def test_weights_that_cannot_be_downloaded_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError, match=r"IMAGENET1K_V1 cannot be downloaded .*resnet18.*\.pth into"):
        build_detector(small(backbone="resnet18", weights="IMAGENET1K_V1"))


# Batch normalization


def test_frozen_batch_norm_keeps_function_names_and_statistics():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3), nn.Sequential(nn.BatchNorm2d(4)))
    for _ in range(3):
        module(5.0 * torch.randn(8, 3, 9, 9) + 2.0)
    nn.init.normal_(module[1].weight)
    names = {name for name in module.state_dict() if not name.endswith("num_batches_tracked")}
    x = torch.randn(2, 3, 9, 9)
    expected = module.eval()(x)
    frozen = freeze_batch_norm(module).train()
    torch.testing.assert_close(frozen(x), expected)
    assert set(frozen.state_dict()) == names
    assert [name for name, _ in frozen.named_parameters()] == ["0.weight", "0.bias"]


def test_training_does_not_move_frozen_statistics():
    model = adaptive()
    before = {name: value.clone() for name, value in model.named_buffers()}
    total(model(images(2), targets(2), images(2))).backward()
    assert before
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_adapting_with_live_batch_norm_warns(caplog):
    adaptive(config=small())
    assert "live batch normalization" in caplog.text


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


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([[10.0, 10.0, 10.0, 30.0]], [0], r"box \[10\.0, 10\.0, 10\.0, 30\.0\] does not have a positive width"),
        ([[10.0, 10.0, 30.0, float("nan")]], [0], "does not have a positive width and height"),
        ([[10.0, 10.0, 20.0, 20.0], [100.0, 10.0, 140.0, 30.0]], [0, 0], "outside of the image of 128 x 64 pixels"),
        ([[-20.0, 10.0, 10.0, 30.0]], [0], "outside of the image"),
        ([[10.0, 10.0, 20.0, 20.0]], [8], r"label 8 of box .* not between 0 and 7"),
        ([[10.0, 10.0, 20.0, 20.0]], [-1], "label -1"),
        ([[10.0, 10.0, 20.0, 20.0]], [0, 1], "1 boxes but 2 labels"),
    ],
)
def test_impossible_annotations_name_the_file(boxes, labels, message):
    wrong = {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels), "file_name": "frankfurt_000001.png"}
    with pytest.raises(ValueError, match=f"frankfurt_000001.png: .*{message}"):
        adaptive()(images(2), [*targets(1), wrong], images(1))
    del wrong["file_name"]
    with pytest.raises(ValueError, match=f"source image 1 of the batch: .*{message}"):
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
    assert forked.reports == []
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
    assert len(model.reports) == (2 if harmonize == "fork" else 0)
    assert all(p.isfinite().all() for p in model.parameters())


# Evaluation


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
