"""Slim domain-adaptive detectors of every architecture, and batches of random images for them.

Tests import this module, like common_detectors, before detectron2.
"""

import pytest
import torch
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, META_ARCH_REGISTRY, SimpleFeaturePyramid, SwinTransformer, ViT, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from gh_downstream.detection.alignment import AlignmentConfig
from gh_downstream.detection.detectron2 import DomainAdaptiveFCOS, DomainAdaptiveRCNN, add_adaptation_config
from gh_downstream.integrations.detectron2 import add_gh_config
from tests.integrations.detectron2 import toy_detectors as common_detectors  # noqa: F401  # it skips where Detectron2 is missing

SMALL = {"image_hidden": 16, "image_std": 0.1, "instance_hidden": 16, "instance_regions": 8}
IMAGE_ONLY = {"instance_weight": 0.0, "consistency_weight": 0.0}
PLAIN = {"DomainAdaptiveRCNN": "GeneralizedRCNN", "DomainAdaptiveRetinaNet": "RetinaNet"}
STRONG_WEAK = ("DA.METHOD", "strong_weak")
WITHOUT = ("DA.METHOD", "none")
RES, LEVELS = ["res2", "res3", "res4", "res5"], ["p2", "p3", "p4", "p5"]
BASE = {
    "META_ARCHITECTURE": "DomainAdaptiveRCNN",
    "DEVICE": "cpu",
    "WEIGHTS": "",
    "PIXEL_STD": [60.0, 60.0, 60.0],
    "BACKBONE": {"NAME": "build_resnet_fpn_backbone", "FREEZE_AT": 0},
    "RESNETS": {
        "OUT_FEATURES": RES,
        "STEM_OUT_CHANNELS": 16,
        "RES2_OUT_CHANNELS": 32,
        "WIDTH_PER_GROUP": 8,
        "STRIDE_IN_1X1": False,
    },
    "FPN": {"IN_FEATURES": RES, "OUT_CHANNELS": 32},
    "ANCHOR_GENERATOR": {"SIZES": [[8], [16], [32], [64], [128]]},
    "RPN": {
        "IN_FEATURES": [*LEVELS, "p6"],
        "BATCH_SIZE_PER_IMAGE": 32,
        "PRE_NMS_TOPK_TRAIN": 50,
        "PRE_NMS_TOPK_TEST": 50,
        "POST_NMS_TOPK_TRAIN": 20,
        "POST_NMS_TOPK_TEST": 20,
    },
    "ROI_HEADS": {"NAME": "StandardROIHeads", "NUM_CLASSES": 8, "IN_FEATURES": LEVELS, "BATCH_SIZE_PER_IMAGE": 16},
    "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "FC_DIM": 32, "POOLER_RESOLUTION": 7},
    "ROI_MASK_HEAD": {
        "NAME": "MaskRCNNConvUpsampleHead",
        "NUM_CONV": 1,
        "CONV_DIM": 8,
        "POOLER_RESOLUTION": 7,
    },
    "RETINANET": {"NUM_CLASSES": 8, "NUM_CONVS": 1},
}


def _one_map(name, **more):
    return {
        "RPN": {"IN_FEATURES": [name]},
        "ROI_HEADS": {"IN_FEATURES": [name], **more},
        "ANCHOR_GENERATOR": {"SIZES": [[8, 16, 32]]},
    }


YAML = {
    "fpn": {},
    "c4": {
        "BACKBONE": {"NAME": "build_resnet_backbone"},
        "RESNETS": {"OUT_FEATURES": ["res4"]},
        **_one_map("res4", NAME="Res5ROIHeads"),
    },
    "dc5": {
        "BACKBONE": {"NAME": "build_resnet_backbone"},
        "RESNETS": {"OUT_FEATURES": ["res5"], "RES5_DILATION": 2},
        **_one_map("res5"),
    },
    "cascade": {"ROI_HEADS": {"NAME": "CascadeROIHeads"}, "ROI_BOX_HEAD": {"CLS_AGNOSTIC_BBOX_REG": True}},
    "mask": {"MASK_ON": True},
    "mask c4": {
        "MASK_ON": True,
        "BACKBONE": {"NAME": "build_resnet_backbone"},
        "RESNETS": {"OUT_FEATURES": ["res4"]},
        **_one_map("res4", NAME="Res5ROIHeads"),
    },
    "vgg": {
        "BACKBONE": {"NAME": "build_vgg16_backbone", "FREEZE_AT": 2},
        "ROI_BOX_HEAD": {"NAME": "VGG16BoxHead", "FC_DIM": 16},
        **_one_map("vgg5"),
    },
    "retinanet": {
        "META_ARCHITECTURE": "DomainAdaptiveRetinaNet",
        "BACKBONE": {"NAME": "build_retinanet_resnet_fpn_backbone"},
        "FPN": {"IN_FEATURES": RES[1:]},
    },
}


def cfg_of(kind="fpn", *overrides, **alignment):
    """A config of one of the architectures in YAML, image-level alignment alone for those without regions."""
    cfg = get_cfg()
    add_gh_config(cfg)
    add_adaptation_config(cfg)
    for values in (BASE, YAML[kind]):
        cfg.MODEL.merge_from_other_cfg(CfgNode(values))
    values = SMALL | (IMAGE_ONLY if kind == "retinanet" else {}) | alignment
    for name, value in values.items():
        cfg.DA.IMAGE_INSTANCE[name.upper()] = value
    cfg.DA.STRONG_WEAK.LOCAL_HIDDEN = cfg.DA.STRONG_WEAK.GLOBAL_HIDDEN = 16
    cfg.merge_from_list(list(overrides))
    return cfg


def built(cfg, architecture=None):
    """The model of a config, the same at every call, in training mode."""
    torch.manual_seed(0)
    return META_ARCH_REGISTRY.get(architecture or cfg.MODEL.META_ARCHITECTURE)(cfg)


def plain_of(kind, *overrides):
    """Detectron2's own model of an architecture, the same at every call, in training mode."""
    cfg = cfg_of(kind, *overrides)
    return built(cfg, PLAIN[cfg.MODEL.META_ARCHITECTURE])


def model_of(kind="fpn", *overrides, harmonize_features=None, **alignment):
    """A model of any architecture, the same at every call, in training mode."""
    torch.manual_seed(0)
    if kind in LAZY:
        if kind != "fcos":
            pytest.importorskip("timm", reason="Detectron2's ViT and Swin need timm")
        return instantiate(LAZY[kind](SMALL | alignment)).train()
    cfg = cfg_of(kind, *overrides, **alignment)
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    return model(cfg, harmonize_features=harmonize_features) if harmonize_features else model(cfg)


def _lazy_rcnn(backbone, alignment):
    return L(DomainAdaptiveRCNN)(
        backbone=backbone,
        proposal_generator=L(RPN)(
            in_features=[*LEVELS, "p6"],
            head=L(StandardRPNHead)(in_channels=32, num_anchors=3),
            anchor_generator=L(DefaultAnchorGenerator)(
                sizes=[[8], [16], [32], [64], [128]], aspect_ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]
            ),
            anchor_matcher=L(Matcher)(thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True),
            box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
            batch_size_per_image=32,
            positive_fraction=0.5,
            pre_nms_topk=(50, 50),
            post_nms_topk=(20, 20),
            nms_thresh=0.7,
        ),
        roi_heads=L(StandardROIHeads)(
            num_classes=8,
            batch_size_per_image=16,
            positive_fraction=0.25,
            proposal_matcher=L(Matcher)(thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False),
            box_in_features=LEVELS,
            box_pooler=L(ROIPooler)(
                output_size=7, scales=(1 / 4, 1 / 8, 1 / 16, 1 / 32), sampling_ratio=0, pooler_type="ROIAlignV2"
            ),
            # As ViTDet's: convolutions, then one layer.
            box_head=L(FastRCNNConvFCHead)(
                input_shape=ShapeSpec(channels=32, height=7, width=7), conv_dims=[8], fc_dims=[16], conv_norm="LN"
            ),
            box_predictor=L(FastRCNNOutputLayers)(
                input_shape=ShapeSpec(channels=16),
                box2box_transform=L(Box2BoxTransform)(weights=(10, 10, 5, 5)),
                num_classes="${..num_classes}",
            ),
        ),
        pixel_mean=[128.0, 128.0, 128.0],
        pixel_std=[60.0, 60.0, 60.0],
        input_format="RGB",
        alignment=L(AlignmentConfig)(**alignment),
    )


def _vit(alignment):
    net = L(ViT)(
        img_size=128,
        patch_size=16,
        embed_dim=16,
        depth=2,
        num_heads=2,
        window_size=4,
        window_block_indexes=[0],
        use_rel_pos=True,
        drop_path_rate=0.1,
        out_feature="last_feat",
    )
    backbone = L(SimpleFeaturePyramid)(
        net=net,
        in_feature="${.net.out_feature}",
        out_channels=32,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=L(LastLevelMaxPool)(),
        square_pad=128,
    )
    return _lazy_rcnn(backbone, alignment)


def _swin(alignment):
    trunk = L(SwinTransformer)(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4)
    backbone = L(FPN)(
        bottom_up=trunk, in_features=["p0", "p1", "p2", "p3"], out_channels=32, top_block=L(LastLevelMaxPool)()
    )
    return _lazy_rcnn(backbone, alignment)


def _retinanet_backbone():
    return build_backbone(cfg_of("retinanet"))


def _fcos(alignment):
    return L(DomainAdaptiveFCOS)(
        backbone=L(_retinanet_backbone)(),
        head=L(FCOSHead)(input_shape=[ShapeSpec(channels=32)] * 5, num_classes=8, conv_dims=[32]),
        num_classes=8,
        head_in_features=["p3", "p4", "p5", "p6", "p7"],
        pixel_mean=[128.0, 128.0, 128.0],
        pixel_std=[60.0, 60.0, 60.0],
        alignment=L(AlignmentConfig)(**alignment | IMAGE_ONLY),
    )


LAZY = {"vit": _vit, "swin": _swin, "fcos": _fcos}


def labels_of(height, width, masks=False):
    """Two objects in an image of at least 64 x 128 pixels."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 8.0, 40.0, 40.0], [60.0, 20.0, 100.0, 60.0]]))
    instances.gt_classes = torch.tensor([0, 7])
    if masks:
        instances.gt_masks = BitMasks(torch.ones(2, height, width, dtype=torch.bool))
    return instances


def source(count=2, masks=False, height=64, width=128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    return [{"image": image, "instances": labels_of(height, width, masks)} for image in images]


def target(count=2, pseudo=False, height=64, width=128, seed=100):
    """Images of target; a model that looked at their labels would fail."""
    batch = [entry | {"domain": "target", "instances": None} for entry in source(count, False, height, width, seed)]
    return [x | {"pseudo_instances": labels_of(height, width)} for x in batch] if pseudo else batch


def losses_of(model, batch, iteration=0, seed=1):
    """Losses of a first step, with all random numbers held: samples of regions, dropout, stochastic depth."""
    torch.manual_seed(seed)
    vars(model).pop("loss_normalizer", None)  # the running mean of the dense detectors
    with EventStorage(iteration):
        return model(batch)


def is_alignment(key):
    return "domain" in key or "consistency" in key


def split(losses):
    """The losses of the task and those of the alignment."""
    return (
        {key: loss for key, loss in losses.items() if not is_alignment(key)},
        {key: loss for key, loss in losses.items() if is_alignment(key)},
    )


def reached(loss, model):
    """Names and gradients of the parameters that a loss, or the sum of several, reaches."""
    loss = sum(loss.values()) if isinstance(loss, dict) else loss
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), retain_graph=True, allow_unused=True)
    return {name: gradient for name, gradient in zip(trained, found, strict=True) if gradient is not None}


def assert_same(found, expected):
    """The same keys, in the same order, with the same bits."""
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
