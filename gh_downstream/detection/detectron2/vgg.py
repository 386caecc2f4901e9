"""VGG16 as the literature on domain adaptation uses it: the convolutions as backbone, fc6 and fc7 as box head.

Simonyan and Zisserman, ICLR 2015, arXiv 1409.1556, without batch normalization. The names of the parameters end in
those of torchvision's ``vgg16``, so that Detectron2 finds the ImageNet weights in its file itself::

    MODEL:
      WEIGHTS: "vgg16-397923af.pth?matching_heuristics=True"  # of torchvision
      PIXEL_MEAN: [123.675, 116.28, 103.53]  # what these weights were trained with
      PIXEL_STD: [58.395, 57.12, 57.375]
      BACKBONE: {NAME: build_vgg16_backbone, FREEZE_AT: 2}
      VGG: {OUT_FEATURES: [vgg5]}
      RPN: {IN_FEATURES: [vgg5]}
      ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [vgg5]}
      ROI_BOX_HEAD: {NAME: VGG16BoxHead, FC_DIM: 4096, POOLER_RESOLUTION: 7}
    INPUT: {FORMAT: RGB}
"""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ROI_BOX_HEAD_REGISTRY, Backbone
from torch import Tensor, nn

from gh_downstream.detection.detectron2.config import check_node

BLOCKS = {"vgg1": (64, 2), "vgg2": (128, 2), "vgg3": (256, 3), "vgg4": (512, 3), "vgg5": (512, 3)}
"""Channels and number of convolutions of each block."""


class VGG16(Backbone):
    """The convolutions of VGG16.

    The outputs ``vgg1`` to ``vgg5`` are those of the five blocks before their pooling, at strides 1, 2, 4, 8 and 16
    with 64, 128, 256, 512 and 512 channels. What lies behind the last output is not built.

    Args:
        out_features: Names of the outputs, one or more.
        freeze_at: Number of blocks, counted from the image, that are not trained; the literature freezes 2.
        in_channels: Channels of the images.
    """

    def __init__(self, out_features: Sequence[str] = ("vgg5",), freeze_at: int = 0, in_channels: int = 3) -> None:
        super().__init__()
        if not out_features or not set(out_features) <= set(BLOCKS):
            raise ValueError(
                f"the outputs of VGG16 (MODEL.VGG.OUT_FEATURES) are {', '.join(BLOCKS)}, got {[*out_features]}"
            )
        self._out_features = [name for name in BLOCKS if name in out_features]
        self._out_feature_channels = {name: channels for name, (channels, _) in BLOCKS.items()}
        self._out_feature_strides = {name: 2**k for k, name in enumerate(BLOCKS)}
        layers: list[nn.Module] = []
        self._ends: dict[int, str] = {}  # Place of the last layer of each block in torchvision's numbering.
        for k, (name, (channels, convolutions)) in enumerate(BLOCKS.items()):
            for _ in range(convolutions):
                convolution = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1)
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]  # there is one
                convolution.requires_grad_(k >= freeze_at)
                layers += [convolution, nn.ReLU(inplace=True)]
                in_channels = channels
            self._ends[len(layers) - 1] = name
            if name == self._out_features[-1]:
                break
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the feature maps of images of shape ``[N, in_channels, H, W]`` by name; rounded down in size."""
        maps = {}
        for k, layer in enumerate(self.features):
            x = layer(x)
            if self._ends.get(k) in self._out_features:
                maps[self._ends[k]] = x
        return maps


@BACKBONE_REGISTRY.register()
def build_vgg16_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> VGG16:
    """Build a :class:`VGG16` from ``MODEL.VGG.OUT_FEATURES`` and ``MODEL.BACKBONE.FREEZE_AT``."""
    check_node(cfg, "MODEL.VGG")
    return VGG16(cfg.MODEL.VGG.OUT_FEATURES, cfg.MODEL.BACKBONE.FREEZE_AT, input_shape.channels)


@ROI_BOX_HEAD_REGISTRY.register()
class VGG16BoxHead(nn.Module):
    """The layers fc6 and fc7 of VGG16, each with ReLU and dropout.

    Args:
        input_shape: Channels, height and width of a pooled region; 512, 7 and 7 for the ImageNet weights.
        fc_dim: Width of both layers (``MODEL.ROI_BOX_HEAD.FC_DIM``); 4096 for the ImageNet weights.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, fc_dim: int = 4096) -> None:
        super().__init__()
        inputs = input_shape.channels * input_shape.height * input_shape.width
        linear = [nn.Linear(inputs, fc_dim), nn.Linear(fc_dim, fc_dim)]
        for layer in linear:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        self.classifier = nn.Sequential(*(part for x in linear for part in (x, nn.ReLU(inplace=True), nn.Dropout())))
        self.output_shape = ShapeSpec(channels=fc_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """The arguments from a config."""
        return {"input_shape": input_shape, "fc_dim": cfg.MODEL.ROI_BOX_HEAD.FC_DIM}

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape ``[R, fc_dim]`` of pooled regions of shape ``[R, C, H, W]``; ``R`` may be 0."""
        return self.classifier(x.flatten(1))
