"""The detectors with regions: their proposals, what they share, what Detectron2 does with them."""

import copy

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage, get_event_storage

from gh_downstream.detection.detectron2 import DomainAdaptiveRCNN
from tests.detection.detectron2.adaptive_models import (
    IMAGE_ONLY,
    assert_same,
    built,
    cfg_of,
    losses_of,
    model_of,
    plain_of,
    reached,
    source,
    split,
    target,
)


def test_the_visualization_sees_what_it_sees_in_detectron2():
    drawn = []

    class Drawing:
        """As Detectron2's users override it."""

        def visualize_training(self, batched_inputs, proposals):
            boxes = [found.proposal_boxes.tensor for found in proposals]
            drawn.append((get_event_storage().iter, batched_inputs, boxes))

    class DrawnPlain(Drawing, GeneralizedRCNN):
        pass

    class Drawn(Drawing, DomainAdaptiveRCNN):
        pass

    batch, cfg = source(), cfg_of("fpn", "VIS_PERIOD", 2)
    for kind, images in ((DrawnPlain, batch), (Drawn, target() + batch)):
        torch.manual_seed(0)
        model = kind(cfg)
        for iteration in (2, 3):
            losses_of(model, images, iteration)
    (iteration, plain, expected), (other_iteration, adaptive, found) = drawn
    assert iteration == other_iteration == 2
    assert [x["image"] for x in plain] == [x["image"] for x in adaptive] == [x["image"] for x in batch]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(kind, {}) for kind in ("fpn", "c4", "dc5", "cascade", "mask")]
    + [("fpn", {"image_weight": 0.0, "consistency_weight": 0.0}), ("c4", IMAGE_ONLY), ("retinanet", IMAGE_ONLY)],
    ids=str,
)
def test_shared_is_what_both_losses_reach(kind, changes):
    model = model_of(kind, **changes)
    losses = losses_of(model, source(2, masks=kind == "mask") + target(2, pseudo=True))
    task, alignment = (set(reached(group, model)) for group in split(losses))
    matched = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name.startswith(tuple(f"{module}." for module in model.shared))
    }
    assert task & alignment == matched
    assert {name.split(".")[0] for name in alignment - task} == {"alignment"}


def test_proposals_of_the_target_are_those_of_evaluation_and_the_flag_is_back_even_after_an_error():
    model = model_of("fpn")
    images = model.preprocess_image(target(2))
    maps = model.backbone(images.tensor)
    graphs = []
    model.proposal_generator.rpn_head.register_forward_hook(lambda *args: graphs.append(torch.is_grad_enabled()))
    found = model._propose(target(2), images, maps)
    assert graphs == [False]
    assert model.proposal_generator.training
    expected, _ = copy.deepcopy(model.proposal_generator).eval()(images, maps)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.proposal_boxes.tensor, theirs.proposal_boxes.tensor)
    with pytest.raises(KeyError):
        model._propose(target(2), images, {})
    assert model.proposal_generator.training


def test_the_best_proposals_of_both_domains_are_aligned():
    model, seen = model_of("fpn", instance_regions=5), []
    model.roi_heads.box_head.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    losses_of(model, source(2) + target(3))
    assert seen == [32, 10, 15]  # what the detector samples, then 5 of each image


def test_precomputed_proposals():
    model = model_of("fpn", "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")
    proposals = Instances((64, 128))
    proposals.proposal_boxes = Boxes(torch.tensor([[8.0, 8.0, 44.0, 40.0], [30.0, 2.0, 90.0, 60.0]]))
    proposals.objectness_logits = torch.tensor([2.0, 1.0])
    batch = [x | {"proposals": proposals} for x in source(2) + target(2)]
    losses = losses_of(model, batch)
    assert set(split(losses)[0]) == {"loss_cls", "loss_box_reg"}
    assert sum(losses.values()).isfinite()


@pytest.mark.parametrize(("sources", "targets"), [(1, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_any_batch_sizes_with_images_of_different_sizes_in_any_order(kind, sources, targets):
    model = model_of(kind)
    first = source(sources - 1) + source(1, height=96, width=132)
    second = target(targets - 1) + target(1, height=64, width=150)
    losses = losses_of(model, first + second)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert_same(losses_of(model, second + first), losses)


@pytest.mark.parametrize("kind", ["fpn", "c4", "cascade"])
@pytest.mark.parametrize("labelled", [True, False])
def test_images_without_boxes_and_without_proposals(kind, labelled):
    model = model_of(kind)
    nothing = Instances((64, 128), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.long))
    batch = source(2) if labelled else [x | {"instances": nothing} for x in source(2)]
    for min_box_size in (0.0, 1e6):
        model.proposal_generator.min_box_size = min_box_size
        losses = losses_of(model, batch + target(2))
        assert all(gradient.isfinite().all() for gradient in reached(losses, model).values())
        assert (losses["loss_instance_domain"] == 0) == (min_box_size > 0)


def test_pseudo_labels_leave_the_statistics_of_source():
    model, plain = model_of("fpn"), plain_of("fpn")
    seen = []
    model.proposal_generator.register_forward_hook(lambda *args: seen.append(None))
    for detector, batch in ((model, source() + target(2, pseudo=True)), (plain, source())):
        torch.manual_seed(1)
        with EventStorage() as storage:
            detector(batch)
        seen.append({key: h.values() for key, h in storage.histories().items() if not key.startswith("pseudo/")})
    assert seen == [None, None, seen[-1], seen[-1]]  # the proposals for the alignment are those of the losses
    assert seen[-1]


def test_test_time_augmentation_takes_the_model():
    cfg = cfg_of("fpn", "TEST.AUG.MIN_SIZES", (64, 96))
    images = [{"image": x["image"], "height": 64, "width": 128} for x in source(1)]
    with torch.no_grad():
        found = GeneralizedRCNNWithTTA(cfg, built(cfg).eval())(images)
        expected = GeneralizedRCNNWithTTA(cfg, built(cfg, "GeneralizedRCNN").eval())(images)
    assert torch.equal(found[0]["instances"].scores, expected[0]["instances"].scores)
    assert len(found[0]["instances"])
