"""torchvision's Faster R-CNN, and the domain-adaptive model around it."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

try:
    from torchvision import models
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.rpn import RPNHead, concat_box_prediction_layers
    from torchvision.models.resnet import BasicBlock
    from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
except ImportError as error:
    raise ImportError("the torchvision engine needs torchvision: pip install gh_downstream[detection]") from error

from gh_downstream.detection.alignment import AlignmentConfig, DomainAlignment, DomainFeatures
from gh_downstream.harmonization import Weighting, fork
from gh_downstream.training import AdaptedModel
from gh_downstream.training.pretrained import fill_pretrained, read_pretrained

logger = logging.getLogger(__name__)

SLIM_CHANNELS = (16, 32, 64, 128)
"""Channels of the four stages of the slim trunk."""


@dataclass
class DetectorConfig:
    """A Faster R-CNN with a feature pyramid. The defaults are for Cityscapes; :meth:`slim` is for the mini task.

    Attributes:
        num_classes: Number of object classes, background not counted.
        backbone: A ResNet of torchvision (``resnet18``, ``resnet50``, ``resnext101_32x8d``, ...) or ``slim``.
        weights: Weights to start from: a name of torchvision (``IMAGENET1K_V1``, ``DEFAULT``, or in full
            ``FasterRCNN_ResNet50_FPN_Weights.COCO_V1``), a file with the state dict of a ResNet or of a detector (a
            checkpoint of a burn-in, for example), or None.
        trainable_layers: How many of the five layers of the trunk are trained, counted from its end; 3 is usual with
            ImageNet weights.
        frozen_batch_norm: Batch normalization with fixed statistics, as adaptation wants. Without pretrained weights
            train with live batch normalization first.
        min_size: Length in pixels to which the shorter side of an image is resized.
        max_size: Upper limit in pixels of the longer side after resizing.
        fpn_channels: Channels of the feature pyramid.
        box_head_features: Width of the two layers of the box head.
        anchor_sizes: Side in pixels of the anchors on each of the five levels.
        rpn_batch_size: Anchors of each image in the loss of the proposal network.
        rpn_pre_nms_top_n: Proposals of each level kept before non-maximum suppression.
        rpn_post_nms_top_n: Proposals of each image kept after it.
        roi_batch_size: Proposals of each image in the loss of the box head.
        score_threshold: Detections with a lower score are dropped.
        detections_per_image: Detections kept, at most.

    Raises:
        ValueError: A number is out of its range.
    """

    num_classes: int = 8
    backbone: str = "resnet50"
    weights: str | None = None
    trainable_layers: int = 5
    frozen_batch_norm: bool = True
    min_size: int = 600
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

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")
        if not 0 <= self.trainable_layers <= 5:
            raise ValueError(f"trainable_layers must be between 0 and 5, got {self.trainable_layers}")
        if len(self.anchor_sizes) != 5:
            raise ValueError(f"anchor_sizes takes one size for each of the five levels, got {self.anchor_sizes}")

    @classmethod
    def slim(cls, **changes: Any) -> DetectorConfig:
        """A detector that trains on images of 128 x 256 pixels in CPU-seconds, with live batch normalization.

        Args:
            **changes: Fields that differ from it.
        """
        settings: dict[str, Any] = {
            "backbone": "slim",
            "frozen_batch_norm": False,
            "min_size": 128,
            "max_size": 256,
            "fpn_channels": 32,
            "box_head_features": 128,
            "anchor_sizes": [8, 16, 32, 64, 128],
            "rpn_batch_size": 64,
            "rpn_pre_nms_top_n": 200,
            "rpn_post_nms_top_n": 100,
            "roi_batch_size": 64,
            "detections_per_image": 50,
        }
        return cls(**settings | changes)


def build_detector(config: DetectorConfig) -> FasterRCNN:
    """Build torchvision's Faster R-CNN, load its weights and freeze what is to be frozen.

    What was loaded, and what was not, is logged.

    Args:
        config: The detector.

    Returns:
        The detector, in training mode, with torchvision's labels (0 is background).

    Raises:
        ValueError: The backbone is unknown, or the weights fill less than half of it.
        FileNotFoundError: The weights are neither a file nor known to torchvision.
    """
    body, channels = _trunk(config.backbone)
    backbone = BackboneWithFPN(body, {f"layer{i + 1}": str(i) for i in range(4)}, channels, config.fpn_channels)
    anchors = AnchorGenerator(tuple((size,) for size in config.anchor_sizes), ((0.5, 1.0, 2.0),) * 5)
    pool = MultiScaleRoIAlign(
        ["0", "1", "2", "3"],
        output_size=7,
        sampling_ratio=2,
        # The pyramid paper's 224 pixels belong to anchors from 32: regions change levels where anchors do.
        canonical_scale=7 * config.anchor_sizes[0],
    )
    detector = FasterRCNN(
        backbone,
        min_size=config.min_size,
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
    )
    if config.weights is not None:
        _load_weights(detector, config.weights, config.backbone)
    trained = ("layer4", "layer3", "layer2", "layer1", "")[: config.trainable_layers]
    for name, parameter in backbone.body.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    return freeze_batch_norm(detector) if config.frozen_batch_norm else detector


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every ``BatchNorm2d`` by torchvision's ``FrozenBatchNorm2d``, keeping its statistics and affine map.

    The names in the state dict stay the same, so that a checkpoint with live batch normalization loads into the frozen
    model. Scale and shift are no parameters any more: build the optimizer afterwards.

    Args:
        module: Any module, changed in place.

    Returns:
        ``module``, or its replacement where it is a ``BatchNorm2d`` itself.
    """
    if isinstance(module, nn.BatchNorm2d):
        frozen = FrozenBatchNorm2d(module.num_features, eps=module.eps).to(module.weight.device)
        frozen.load_state_dict(module.state_dict())
        return frozen
    for name, child in module.named_children():
        setattr(module, name, freeze_batch_norm(child))
    return module


class DomainAdaptiveFasterRCNN(AdaptedModel):
    """A Faster R-CNN that aligns the features of source and target while it learns to detect on source.

    Source and target go through the trunk in separate forward passes, so that harmonizing the two losses costs one more
    backward pass through the source half only. The instance-level features are a second pass of the box head over the
    best proposals of both domains. Labels of the target cannot be given.

    Args:
        detector: From :func:`build_detector`.
        alignment: What is aligned; None trains on source alone, and then there are no discriminators.
        harmonize_features: A weighting to harmonize the gradients of alignment and task with, at the feature maps of
            both domains, by :func:`~gh_downstream.fork`; train on the plain sum of the losses then. With None that is
            the plain sum, or harmonized by a :class:`~gh_downstream.Harmonizer`.

    """

    def __init__(
        self,
        detector: FasterRCNN,
        alignment: AlignmentConfig | None = None,
        harmonize_features: Weighting | None = None,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.alignment: DomainAlignment | None = None
        if alignment is not None:
            region_features = detector.roi_heads.box_predictor.cls_score.in_features
            self.alignment = DomainAlignment(detector.backbone.out_channels, region_features, alignment)
            if any(isinstance(module, nn.BatchNorm2d) for module in detector.modules()):
                logger.warning("adapting with live batch normalization mixes the statistics of the domains; freeze it")
        self.harmonize_features = harmonize_features

    @property
    def num_classes(self) -> int:
        """Number of object classes."""
        return self.detector.roi_heads.box_predictor.cls_score.out_features - 1

    @property
    def shared(self) -> list[str]:  # type: ignore[override]
        """Names of the modules that the task and the alignment losses share, for a Harmonizer's ``shared``."""
        if self.alignment is not None and self.alignment.needs_regions:
            return ["detector.backbone", "detector.roi_heads.box_head"]
        return ["detector.backbone"]

    def forward(
        self,
        source_images: Sequence[Tensor],
        source_targets: Sequence[Mapping[str, Any]] | None = None,
        target_images: Sequence[Tensor] | None = None,
    ) -> dict[str, dict[str, Tensor]] | list[dict[str, Tensor]]:
        """Return the losses in training, the detections otherwise.

        Args:
            source_images: Images of shape ``[3, H, W]``, RGB in [0, 1]; the sizes may differ.
            source_targets: In training, for each image ``boxes`` of shape ``[n, 4]`` as x1, y1, x2, y2 in pixels of the
                image, ``labels`` of shape ``[n]`` from 0 to ``num_classes - 1``, and optionally ``file_name``, which
                errors then name. ``n`` may be 0.
            target_images: Images of the target, as many as you like; without them nothing is aligned.

        Returns:
            In training ``{"task": {name: loss}, "alignment": {name: loss}}``, scalars times their weights; without
            alignment only ``"task"``. In evaluation for each image ``boxes`` of shape ``[n, 4]`` in pixels of the given
            image, ``labels`` of shape ``[n]`` from 0, ``scores`` of shape ``[n]`` in [0, 1], highest first.

        Raises:
            ValueError: Targets are missing in training, or an annotation is outside of its image, degenerate, or of an
                unknown class.
        """
        if not self.training:
            found = self.detector(list(source_images))
            return [{**detections, "labels": detections["labels"] - 1} for detections in found]
        if source_targets is None:
            raise ValueError("training needs source_targets: boxes and labels for each source image")
        targets = _torchvision_targets(source_images, source_targets, self.num_classes)
        source, targets = self.detector.transform(list(source_images), targets)
        source_maps = self.detector.backbone(source.tensors)
        if self.alignment is None or target_images is None:
            return {"task": self._task_losses(source, source_maps, targets)[0]}
        target = self.detector.transform(list(target_images))[0]
        target_maps = self.detector.backbone(target.tensors)
        task_maps = source_maps
        if self.harmonize_features is not None:
            source_maps, target_maps, task_maps = self._fork(source_maps, target_maps)
        # The proposal network runs on source first: under autocast, weights first cast without gradient stay so.
        task, source_proposals = self._task_losses(source, task_maps, targets)
        target_proposals = self._propose(target, target_maps) if self.alignment.needs_regions else []
        alignment = self.alignment(
            self._domain_features(source, source_maps, source_proposals),
            self._domain_features(target, target_maps, target_proposals),
        )
        return {"task": task, "alignment": alignment}

    def _fork(
        self, source_maps: dict[str, Tensor], target_maps: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Source and target maps for the alignment and source maps for the task, harmonized jointly."""
        maps = [*source_maps.values(), *target_maps.values()]
        aligned, task = fork(maps, self.harmonize_features, ("alignment", "task"), self.measurements.add)
        n = len(source_maps)
        return (
            dict(zip(source_maps, aligned[:n], strict=True)),
            dict(zip(target_maps, aligned[n:], strict=True)),
            dict(zip(source_maps, task[:n], strict=True)),
        )

    def _task_losses(
        self, images: ImageList, maps: dict[str, Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Detection losses, and the proposals of each image, best first."""
        proposals, rpn_losses = self.detector.rpn(images, maps, targets)
        # A batch without any region has a loss of 0 / 0: an image without proposals gets the whole image as one.
        proposals = [
            boxes if len(boxes) else boxes.new_tensor([[0, 0, width, height]])
            for boxes, (height, width) in zip(proposals, images.image_sizes, strict=True)
        ]
        _, box_losses = self.detector.roi_heads(maps, proposals, images.image_sizes, targets)
        return {**box_losses, **rpn_losses}, proposals

    @torch.no_grad()
    def _propose(self, images: ImageList, maps: dict[str, Tensor]) -> list[Tensor]:
        """Proposals of each image, best first, without the labels that torchvision's forward asks for in training."""
        rpn = self.detector.rpn
        levels = list(maps.values())
        objectness, deltas = rpn.head(levels)
        anchors = rpn.anchor_generator(images, levels)
        anchors_per_level = [level[0].numel() for level in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        boxes = rpn.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
        return rpn.filter_proposals(boxes, objectness, images.image_sizes, anchors_per_level)[0]

    def _domain_features(self, images: ImageList, maps: dict[str, Tensor], proposals: list[Tensor]) -> DomainFeatures:
        """What the alignment sees of one domain."""
        assert self.alignment is not None
        heads = self.detector.roi_heads
        # The subsampled top of the pyramid repeats the level below it.
        pyramid = {name: maps[name] for name in heads.box_roi_pool.featmap_names}
        if not self.alignment.needs_regions:
            return DomainFeatures(pyramid)
        regions = [boxes[: self.alignment.config.instance_regions] for boxes in proposals]
        features = heads.box_head(heads.box_roi_pool(maps, regions, images.image_sizes))
        return DomainFeatures(pyramid, features, [len(boxes) for boxes in regions])


class _RPNHead(RPNHead):
    """Outputs in float32: under bf16 autocast boxes would be rounded to 4 pixels at 1000."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(x)
        return [level.float() for level in objectness], [level.float() for level in deltas]


class _BoxPredictor(FastRCNNPredictor):
    """Outputs in float32, as those of the proposal network."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()


def _trunk(name: str) -> tuple[nn.Module, list[int]]:
    """A residual network with stages ``layer1`` to ``layer4``, and the channels of these."""
    if name == "slim":
        return _slim_trunk(), list(SLIM_CHANNELS)
    known = models.list_models(module=models, include=["resnet*", "resnext*", "wide_resnet*"])
    if name not in known:
        raise ValueError(f"unknown backbone {name!r}: choose slim or one of {', '.join(known)}")
    body = models.get_model(name, weights=None)
    return body, [body.inplanes // 8 * 2**stage for stage in range(4)]


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


def _load_weights(detector: FasterRCNN, weights: str, backbone: str) -> None:
    """Load a state dict of a whole detector, or of the trunk alone."""
    known = {} if backbone == "slim" else models.get_model_weights(backbone).__members__
    state = read_pretrained(weights, backbone, known)
    state = {name.removeprefix("detector."): value for name, value in state.items()}
    whole = any(name.startswith("backbone.") for name in state)
    fill_pretrained(detector if whole else detector.backbone.body, state, weights, backbone)


def _torchvision_targets(
    images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]], num_classes: int
) -> list[dict[str, Tensor]]:
    """Checked targets in torchvision's form: boxes in float32, labels from 1."""
    if len(images) != len(targets):
        raise ValueError(f"{len(images)} source images but targets for {len(targets)}")
    converted = [
        {"boxes": target["boxes"].float().reshape(-1, 4), "labels": target["labels"].long() + 1} for target in targets
    ]
    names = [target.get("file_name", f"source image {i} of the batch") for i, target in enumerate(targets)]
    for name, target in zip(names, converted, strict=True):
        if len(target["boxes"]) != len(target["labels"]):
            raise ValueError(f"{name}: {len(target['boxes'])} boxes but {len(target['labels'])} labels")
    # All images at once: the check reads the device once a step.
    boxes = torch.cat([target["boxes"] for target in converted])
    labels = torch.cat([target["labels"] for target in converted])
    owner = [i for i, target in enumerate(converted) for _ in range(len(target["boxes"]))]
    limits = boxes.new_tensor([[images[i].shape[2], images[i].shape[1]] * 2 for i in owner]).reshape(-1, 4)
    # Written so that NaN is degenerate. Rounded annotations may be off by a pixel.
    degenerate = ~(boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    outside = ((boxes < -1) | (boxes > limits + 1)).any(dim=1)
    unknown = (labels < 1) | (labels > num_classes)
    wrong = (degenerate | outside | unknown).nonzero()
    if len(wrong):
        k = int(wrong[0])
        box, (width, height) = boxes[k].tolist(), limits[k, :2].int().tolist()
        if degenerate[k]:
            problem = f"box {box} does not have a positive width and height"
        elif outside[k]:
            problem = f"box {box} is outside of the image of {width} x {height} pixels (width x height)"
        else:
            problem = f"label {int(labels[k]) - 1} of box {box} is not between 0 and {num_classes - 1}"
        raise ValueError(f"{names[owner[k]]}: {problem}")
    return converted
