"""torchvision's detectors with a feature pyramid, built from a configuration."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from gh_downstream.detection.timm_trunk import TimmTrunk
from gh_downstream.harmonization.checks import check_numbers
from gh_downstream.training.checkpoint import fill_weights
from gh_downstream.training.pretrained import read_pretrained

DETRS = (
    *("rt_detr", "rt_detr_v2", "d_fine", "deimv2"),
    *("deformable_detr", "conditional_detr", "dab-detr", "detr", "table-transformer"),
)
"""Detectors of transformers whose convolutional backbone stands by itself, so that its maps can be aligned."""

SLIM_CHANNELS = (16, 32, 64, 128)
"""Channels of the four stages of the slim trunk."""


@dataclass
class DetectorConfig:
    """A detector of torchvision with a feature pyramid at strides 4 to 64, or a DETR of transformers.

    The defaults are for Cityscapes. A DETR takes no keys from ``fpn_channels`` to ``roi_batch_size``, the others no
    ``pretrained`` and no ``options``.

    Attributes:
        name: ``faster_rcnn``, or without regions ``retinanet`` or ``fcos``; or what transformers calls a DETR:
            ``rt_detr``, ``rt_detr_v2``, ``d_fine``, ``deimv2``, ``deformable_detr``, ``conditional_detr``,
            ``dab-detr``, ``detr``, ``table-transformer``. Others there, such as YOLOS, have no convolutional backbone
            whose maps could be aligned.
        num_classes: Number of object classes, background not counted.
        backbone: A ResNet of torchvision (``resnet18``, ``resnet50``, ``resnext101_32x8d``, ...); or ``slim`` for small
            images: one narrow block a stage; or a network of timm, such as ``tf_efficientnet_lite0``, which gets images
            normalized as its weights expect. That of a DETR is one of timm.
        weights: Weights to start from: a name of torchvision (``IMAGENET1K_V1``, ``DEFAULT``, or in full
            ``FasterRCNN_ResNet50_FPN_Weights.COCO_V1``), ``pip:NAME`` for those of a network of timm in an installed
            package, a file with the state dict of the backbone or of a detector (a checkpoint of a burn-in, for
            example), or None.
        trainable_layers: How many of the five layers of the trunk are trained, counted from its end; 3 is usual with
            ImageNet weights. Those of a network of timm end at strides 2, 4, 8, 16 and 32. Live batch normalization
            of the others keeps its statistics.
        frozen_batch_norm: Batch normalization with fixed statistics, as adaptation wants. Without pretrained weights
            train with live batch normalization first.
        min_size: Length in pixels to which the shorter side of an image is resized. A DETR gets all images in one size,
            ``min_size`` high and ``max_size`` wide: for most of them multiples of 32.
        train_sizes: More of them, of which in training one is drawn for each image of both domains, ``min_size`` or
            one of these; an evaluation, and a teacher, has ``min_size``. For a DETR one is drawn for each batch, and
            the width changes with it.
        max_size: Upper limit in pixels of the longer side after resizing.
        fpn_channels: Channels of the feature pyramid.
        box_head_features: Width of the two layers of the box head of Faster R-CNN, as all of ``rpn_`` and ``roi_`` is.
        anchor_sizes: Side in pixels of the anchors on each of the five levels; RetinaNet has two larger ones besides,
            within an octave, and FCOS none.
        rpn_batch_size: Anchors of each image in the loss of the proposal network.
        rpn_pre_nms_top_n: Proposals of each level kept before non-maximum suppression.
        rpn_post_nms_top_n: Proposals of each image kept after it.
        roi_batch_size: Proposals of each image in the loss of the box head.
        score_threshold: Detections with a lower score are dropped.
        detections_per_image: Detections kept, at most.
        pretrained: A folder that transformers' ``save_pretrained`` wrote, or a repository of the hub, such as
            ``PekingU/rtdetr_v2_r50vd``: its backbone, all of its weights, and its normalization of images.
        options: Keys of transformers' configuration of a DETR. Those that follow from the backbone and ``feat_strides``
            are set where not given. With ``backbone_config`` the backbone is one of transformers.

    Raises:
        ValueError: A number is out of its range, or a key is set that has no effect.
    """

    name: str = "faster_rcnn"
    num_classes: int = 8
    backbone: str = "resnet50"
    weights: str | None = None
    trainable_layers: int = 5
    frozen_batch_norm: bool = True
    min_size: int = 600
    train_sizes: list[int] = field(default_factory=list)
    max_size: int = 1200
    fpn_channels: int = 256
    box_head_features: int = 1024
    anchor_sizes: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    rpn_batch_size: int = 256
    rpn_pre_nms_top_n: int = 2000
    rpn_post_nms_top_n: int = 1000
    roi_batch_size: int = 512
    score_threshold: float = 0.05
    detections_per_image: int = 100
    pretrained: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        without_effect = {"pretrained", "options"}
        if not self.of_torchvision:
            without_effect = _OF_TORCHVISION
            if self.name not in DETRS:
                raise ValueError(
                    f"name is one of {', '.join((*_DETECTORS, *DETRS))}, got {self.name!r}; other detectors of "
                    "transformers have no convolutional backbone whose maps could be aligned"
                )
        if self.pretrained is not None or "backbone_config" in self.options:
            without_effect = without_effect | {"backbone", "trainable_layers"}
        for key in fields(self):
            default = key.default if key.default_factory is MISSING else key.default_factory()
            if key.name in without_effect and getattr(self, key.name) != default:
                raise ValueError(f"{key.name} has no effect here on a {self.name}: leave it out")
        check_numbers(self, ">= 1", trainable_layers=">= 0, <= 5", score_threshold=">= 0, <= 1")
        if len(self.anchor_sizes) != 5:
            raise ValueError(f"anchor_sizes takes one size for each of the five levels, got {self.anchor_sizes}")
        if self.name == "fcos" and self.fpn_channels % 32:
            raise ValueError(f"fpn_channels of an FCOS is a multiple of 32, got {self.fpn_channels}")

    @property
    def of_torchvision(self) -> bool:
        """Whether the detector is one of torchvision, and not of transformers."""
        return self.name in _DETECTORS


def build_detector(config: DetectorConfig) -> FasterRCNN | RetinaNet | FCOS:
    """Build a detector of torchvision, load its weights and freeze what is to be frozen.

    It is in training mode, with torchvision's labels (0 is the background of Faster R-CNN). What was loaded, and what
    was not, is logged.

    Raises:
        ValueError: The backbone is unknown, or the weights fill less than half of it.
        FileNotFoundError: The weights are neither a file nor a package nor known to torchvision.
        ImportError: The backbone is one of timm, which is not installed.
    """
    backbone, normalization = _pyramid(config)
    detector = _DETECTORS[config.name](config, backbone, normalization)
    if config.weights is not None:
        _load_weights(detector, config.weights, config.backbone)
    return freeze_batch_norm(detector) if config.frozen_batch_norm else detector


def _faster_rcnn(config: DetectorConfig, backbone: nn.Module, normalization: dict[str, Any]) -> FasterRCNN:
    anchors = AnchorGenerator(tuple((size,) for size in config.anchor_sizes), (_RATIOS,) * 5)
    pool = MultiScaleRoIAlign(
        ["0", "1", "2", "3"],
        output_size=7,
        sampling_ratio=2,
        # The pyramid paper's 224 pixels belong to anchors from 32: regions change levels where anchors do.
        canonical_scale=7 * config.anchor_sizes[0],
    )
    return FasterRCNN(
        backbone,
        min_size=(*config.train_sizes, config.min_size),  # the last one in an evaluation
        max_size=config.max_size,
        rpn_anchor_generator=anchors,
        rpn_head=_RPNHead(config.fpn_channels, anchors.num_anchors_per_location()[0]),
        rpn_batch_size_per_image=config.rpn_batch_size,
        rpn_pre_nms_top_n_train=config.rpn_pre_nms_top_n,
        rpn_pre_nms_top_n_test=config.rpn_pre_nms_top_n,
        rpn_post_nms_top_n_train=config.rpn_post_nms_top_n,
        rpn_post_nms_top_n_test=config.rpn_post_nms_top_n,
        box_roi_pool=pool,
        box_head=TwoMLPHead(config.fpn_channels * 7 * 7, config.box_head_features),
        box_predictor=_BoxPredictor(config.box_head_features, config.num_classes + 1),
        box_batch_size_per_image=config.roi_batch_size,
        box_score_thresh=config.score_threshold,
        box_detections_per_img=config.detections_per_image,
        **normalization,
    )


def _dense(
    kind: type[RetinaNet | FCOS], config: DetectorConfig, backbone: nn.Module, normalization: dict[str, Any]
) -> RetinaNet | FCOS:
    if kind is RetinaNet:
        sizes = [tuple(int(size * 2 ** (k / 3)) for k in range(3)) for size in config.anchor_sizes]
        anchors, head = AnchorGenerator((*sizes,), (_RATIOS,) * 5), _RetinaNetHead
    else:  # points, whose sizes are the strides of their levels
        anchors, head = AnchorGenerator(((4,), (8,), (16,), (32,), (64,)), ((1.0,),) * 5), _FCOSHead
    return kind(
        backbone,
        num_classes=config.num_classes,
        min_size=(*config.train_sizes, config.min_size),  # the last one in an evaluation
        max_size=config.max_size,
        anchor_generator=anchors,
        head=head(config.fpn_channels, anchors.num_anchors_per_location()[0], config.num_classes),
        score_thresh=config.score_threshold,
        detections_per_img=config.detections_per_image,
        **normalization,
    )


_RATIOS = (0.5, 1.0, 2.0)

_OF_TORCHVISION = {
    *("fpn_channels", "box_head_features", "anchor_sizes", "roi_batch_size"),
    *("rpn_batch_size", "rpn_pre_nms_top_n", "rpn_post_nms_top_n"),
}
"""Keys that DETRs do not have."""

_DETECTORS: dict[str, Callable[[DetectorConfig, nn.Module, dict[str, Any]], FasterRCNN | RetinaNet | FCOS]] = {
    "faster_rcnn": _faster_rcnn,
    "retinanet": partial(_dense, RetinaNet),
    "fcos": partial(_dense, FCOS),
}


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every ``BatchNorm2d`` by torchvision's ``FrozenBatchNorm2d``, keeping its statistics and affine map.

    The names in the state dict stay the same, so that a checkpoint with live batch normalization loads into the frozen
    model. Scale and shift are no parameters any more: build the optimizer afterwards.

    The module is changed in place, and returned; where it is a ``BatchNorm2d`` itself, its replacement is. Those of
    timm, which include the activation behind them, become timm's own frozen ones.
    """
    if isinstance(module, nn.BatchNorm2d) and next(module.children(), None) is not None:
        from timm.layers import freeze_batch_norm_2d

        return freeze_batch_norm_2d(module)
    if isinstance(module, nn.BatchNorm2d):
        frozen = FrozenBatchNorm2d(module.num_features, eps=module.eps).to(module.weight.device)
        frozen.load_state_dict(module.state_dict())
        return frozen
    for name, child in module.named_children():
        setattr(module, name, freeze_batch_norm(child))
    return module


class _Float32:
    """Outputs of a dense head in float32: under bf16 autocast boxes would be rounded to 4 pixels at 1000."""

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: output.float() for name, output in super().forward(x).items()}  # type: ignore[misc]


class _RetinaNetHead(_Float32, RetinaNetHead):
    pass


class _FCOSHead(_Float32, FCOSHead):
    pass


class _RPNHead(RPNHead):
    """Outputs in float32, as above."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], ...]:
        return tuple([level.float() for level in output] for output in super().forward(x))


class _BoxPredictor(FastRCNNPredictor):
    """Outputs in float32, as above."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.float() for output in super().forward(x))


def _pyramid(config: DetectorConfig) -> tuple[Any, dict[str, Any]]:
    """The trunk of a detector with its feature pyramid, and how images are normalized where not as torchvision does."""
    layers, name = config.trainable_layers, config.backbone
    known = models.list_models(module=models, include=["resnet*", "resnext*", "wide_resnet*"])
    if name != "slim" and name not in known:
        trunk = TimmTrunk(name, 5 - layers, config.frozen_batch_norm)
        pyramid = FeaturePyramidNetwork(trunk.channels, config.fpn_channels, LastLevelMaxPool())
        backbone: Any = nn.Sequential(OrderedDict(body=trunk, fpn=pyramid))
        backbone.out_channels = config.fpn_channels
        return backbone, {"image_mean": trunk.mean, "image_std": trunk.std}
    if name == "slim":
        body, channels = _slim_trunk(), [*SLIM_CHANNELS]
    else:
        body = models.get_model(name, weights=None)
        channels = [body.inplanes // 8 * 2**stage for stage in range(4)]
    backbone = BackboneWithFPN(body, {f"layer{i + 1}": str(i) for i in range(4)}, channels, config.fpn_channels)
    trained = ("layer4", "layer3", "layer2", "layer1", "")[:layers]
    for parameter_name, parameter in backbone.body.named_parameters():
        parameter.requires_grad_(parameter_name.startswith(trained))
    return backbone, {}


def _slim_trunk() -> nn.Module:
    """A ResNet with one basic block for each stage, narrow, at the usual strides 4, 8, 16, 32."""
    stem = SLIM_CHANNELS[0]
    layers = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(3, stem, kernel_size=7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(stem),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        layer1=BasicBlock(stem, stem),
    )
    for stage in range(1, 4):
        before, after = SLIM_CHANNELS[stage - 1 : stage + 1]
        downsample = nn.Sequential(nn.Conv2d(before, after, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(after))
        layers[f"layer{stage + 1}"] = BasicBlock(before, after, stride=2, downsample=downsample)
    trunk = nn.Sequential(layers)
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return trunk


def _load_weights(detector: Any, weights: str, backbone: str) -> None:
    """Load a state dict of a whole detector, or of the trunk alone."""
    trunk = detector.backbone.body
    of_timm = isinstance(trunk, TimmTrunk)
    known = {} if backbone == "slim" or of_timm else models.get_model_weights(backbone).__members__
    state = read_pretrained(weights, backbone, known)
    state = {name.removeprefix("detector."): value for name, value in state.items()}
    whole = any(name.startswith("backbone.") for name in state)
    fill_weights(detector if whole else trunk.network if of_timm else trunk, state, weights, backbone)
