"""Detectors of torchvision that align the features of source and target."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from gh_downstream.adaptation import check_whole_source, encode_source
from gh_downstream.detection.alignment import AlignmentConfig, DomainAlignment, DomainFeatures
from gh_downstream.detection.native.data import checked_targets, unit_range
from gh_downstream.detection.pseudo_labels import CLASSIFICATION, confident, pseudo_losses
from gh_downstream.harmonization import Weighting, fork
from gh_downstream.training import AdaptedModel

logger = logging.getLogger(__name__)


class DomainAdaptiveDetector(AdaptedModel):
    """A detector that aligns the features of source and target while it learns to detect on source.

    Source and target go through the trunk in separate forward passes, so that harmonizing the two losses costs one more
    backward pass through the source half only. The target has no labels but those of a mean teacher.

    Args:
        detector: From :func:`build_detector`.
        alignment: What is aligned; None aligns nothing, and then there are no discriminators.
        harmonize_features: A weighting to harmonize the gradients of alignment and task with, at the feature maps of
            both domains, by :func:`~gh_downstream.fork`; train on the plain sum of the losses then. With None that is
            the plain sum, or harmonized by a :class:`~gh_downstream.Harmonizer`.
        pseudo_weight: Weight of the losses on pseudo-labels of a mean teacher; None where there is none.
    """

    _first_label = 0  # the detector's number for the first class
    _learnt_from_pseudo_labels: Sequence[str] = CLASSIFICATION

    def __init__(
        self,
        detector: Any,
        alignment: AlignmentConfig | None = None,
        harmonize_features: Weighting | None = None,
        pseudo_weight: float | None = None,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.alignment: DomainAlignment | None = None
        if alignment is not None:
            if harmonize_features is not None:
                check_whole_source(alignment.source_share)
            if alignment.instance_weight and not self._region_features():
                raise ValueError(
                    f"{type(detector).__name__} has no regions to align: set alignment.instance_weight and "
                    "alignment.consistency_weight to 0"
                )
            self.alignment = DomainAlignment(self._map_channels(), self._region_features(), alignment)
        adapts = alignment is not None or pseudo_weight is not None
        if adapts and any(isinstance(module, nn.BatchNorm2d) for module in detector.modules()):
            logger.warning("adapting with live batch normalization mixes the statistics of the domains; freeze it")
        self.harmonize_features = harmonize_features
        self.pseudo_weight = pseudo_weight

    @property
    def num_classes(self) -> int:
        """Number of object classes."""
        raise NotImplementedError

    @property
    def shared(self) -> list[str]:  # type: ignore[override]
        """Names of the modules that the task and the alignment losses share, for a Harmonizer's ``shared``."""
        return ["detector.backbone"]

    def forward(
        self,
        source_images: Sequence[Tensor],
        source_targets: Sequence[Mapping[str, Any]] | None = None,
        target_images: Sequence[Tensor] | None = None,
        *,
        target_labels: Sequence[Mapping[str, Any]] | None = None,
    ) -> dict[str, dict[str, Tensor]] | list[dict[str, Tensor]]:
        """Return the losses in training, the detections otherwise.

        Args:
            source_images: Images of shape ``[3, H, W]``, RGB in [0, 1] or uint8; the sizes may differ.
            source_targets: In training, for each image ``boxes`` of shape ``[n, 4]`` as x1, y1, x2, y2 in pixels of the
                image, ``labels`` of shape ``[n]`` from 0 to ``num_classes - 1``, and optionally ``file_name``, which
                errors then name. ``n`` may be 0.
            target_images: Images of the target, as many as you like; without them nothing is aligned.
            target_labels: Labels that a teacher gives to each of them (:meth:`pseudo_labels`), in pixels of the image.

        Returns:
            In training ``{"task": {name: loss}, "alignment": {name: loss}}``, scalars times their weights; without
            alignment only ``"task"``. With a ``pseudo_weight`` the task has a loss ``NAME_pseudo`` for each that is
            learnt from pseudo-labels, which is zero where none are given. In evaluation for each image ``boxes`` and
            ``labels`` as above, and ``scores`` of shape ``[n]`` in [0, 1], highest first.

        Raises:
            ValueError: Targets are missing in training, or an annotation is outside of its image, degenerate, or of an
                unknown class; or there are labels of the target without a ``pseudo_weight``.
        """
        if not self.training:
            return self._detect(source_images)
        if source_targets is None:
            raise ValueError("training needs source_targets: boxes and labels for each source image")
        if target_labels is not None and self.pseudo_weight is None:
            raise ValueError("target_labels are those of a teacher: give the model a pseudo_weight to learn from them")
        targets = checked_targets(source_images, source_targets, self.num_classes, self._first_label)
        source, targets = self._prepare(source_images, targets)
        share = 1.0 if self.alignment is None else self.alignment.config.source_share
        task_maps, source_maps = encode_source(self._encode, source.tensors, share)
        if target_images is None or (self.alignment is None and target_labels is None):
            return {"task": self._with_pseudo_losses(self._task_losses(source, task_maps, targets)[0])}
        labels = None
        if target_labels is not None:
            labels = checked_targets(target_images, target_labels, self.num_classes, self._first_label, "target")
        target, labels = self._prepare(target_images, labels)
        target_task_maps = target_maps = self._encode(target.tensors)
        if self.harmonize_features is not None:
            (source_maps, target_maps), (task_maps, target_task_maps) = fork(
                (source_maps, target_maps), self.harmonize_features, on_report=self.measurements.add
            )
        # The proposal network runs on source first: under autocast, weights first cast without gradient stay so.
        task, source_proposals = self._task_losses(source, task_maps, targets)
        found: dict[str, Tensor] = {}
        target_proposals: list[Tensor] = []
        if labels is not None:
            found, target_proposals = self._task_losses(target, target_task_maps, labels)
        elif self.alignment is not None and self.alignment.needs_regions:
            target_proposals = self._propose(target, target_maps)
        losses = {"task": self._with_pseudo_losses(task, found)}
        if self.alignment is not None:
            losses["alignment"] = self.alignment(
                self._domain_features(source, source_maps, source_proposals),
                self._domain_features(target, target_maps, target_proposals),
            )
        return losses

    @torch.no_grad()
    def pseudo_labels(self, images: Sequence[Tensor], thresholds: Sequence[float]) -> list[dict[str, Tensor]]:
        """Return the detections of a teacher, in evaluation mode, that reach the threshold of their class."""
        labels = []
        for found in self._detect(images):
            boxes = found["boxes"]
            kept = confident(found["scores"], found["labels"], thresholds) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
            labels.append({name: values[kept] for name, values in found.items()})
        return labels

    def _with_pseudo_losses(self, task: dict[str, Tensor], found: Mapping[str, Tensor] = {}) -> dict[str, Tensor]:
        """The losses of the task with those that are learnt from pseudo-labels, zeros where there are none now."""
        if self.pseudo_weight is None:
            return task
        found = found or {name: torch.zeros_like(loss) for name, loss in task.items()}
        return task | pseudo_losses(found, self.pseudo_weight, self._learnt_from_pseudo_labels)

    # What differs between detectors; as it is here for those of torchvision.

    def _map_channels(self) -> int | Sequence[int]:
        """Channels of the feature maps: one number for all levels, or one for each."""
        return self.detector.backbone.out_channels

    def _region_features(self) -> int:
        """Length of a region's features; 0 where the detector has no regions."""
        return 0

    def _prepare(
        self, images: Sequence[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, Any]:
        """Images as the detector takes them, and their checked targets in the form of its losses."""
        return self.detector.transform([*map(unit_range, images)], targets)

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps of prepared images of shape ``[N, 3, H, W]``, by level."""
        return self.detector.backbone(images)

    def _detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """What is found in images, as :meth:`forward` returns it."""
        found = self.detector([*map(unit_range, images)])
        return [{**detections, "labels": detections["labels"] - self._first_label} for detections in found]

    def _task_losses(
        self, images: ImageList, maps: dict[str, Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Detection losses, and the proposals of each image, best first, where there are any."""
        raise NotImplementedError

    def _propose(self, images: ImageList, maps: dict[str, Tensor]) -> list[Tensor]:
        """Proposals of each image, best first."""
        raise NotImplementedError

    def _domain_features(self, images: ImageList, maps: dict[str, Tensor], proposals: list[Tensor]) -> DomainFeatures:
        """What the alignment sees of one domain."""
        # The subsampled top of the pyramid repeats the level below it.
        return DomainFeatures({name: level for name, level in maps.items() if name != "pool"})


class DomainAdaptiveFasterRCNN(DomainAdaptiveDetector):
    """A :class:`DomainAdaptiveDetector` around a Faster R-CNN.

    The instance-level features are a second pass of the box head over the best proposals of both domains.
    """

    _first_label = 1  # 0 is the background

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

    def _region_features(self) -> int:
        return self.detector.roi_heads.box_predictor.cls_score.in_features

    def _task_losses(
        self, images: ImageList, maps: dict[str, Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
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
        features = super()._domain_features(images, maps, proposals)
        if self.alignment is None or not self.alignment.needs_regions:
            return features
        heads = self.detector.roi_heads
        regions = [boxes[: self.alignment.config.instance_regions] for boxes in proposals]
        pooled = heads.box_head(heads.box_roi_pool(maps, regions, images.image_sizes))
        return features._replace(regions=pooled, regions_per_image=[len(boxes) for boxes in regions])


class DomainAdaptiveDense(DomainAdaptiveDetector):
    """A :class:`DomainAdaptiveDetector` around a RetinaNet or an FCOS: it aligns feature maps alone."""

    @property
    def num_classes(self) -> int:
        """Number of object classes."""
        return self.detector.head.classification_head.num_classes

    def _task_losses(
        self, images: ImageList, maps: dict[str, Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        levels = [*maps.values()]
        outputs, anchors = self.detector.head(levels), self.detector.anchor_generator(images, levels)
        if isinstance(self.detector, FCOS):
            losses = self.detector.compute_loss(targets, outputs, anchors, [x.shape[2] * x.shape[3] for x in levels])
        else:
            losses = self.detector.compute_loss(targets, outputs, anchors)
        return {f"loss_{name}": loss for name, loss in losses.items()}, []


def adaptive_model(
    detector: FasterRCNN | RetinaNet | FCOS,
    alignment: AlignmentConfig | None = None,
    harmonize_features: Weighting | None = None,
    pseudo_weight: float | None = None,
) -> DomainAdaptiveDetector:
    """Build the :class:`DomainAdaptiveDetector` around a detector; the arguments are its own."""
    kind = DomainAdaptiveFasterRCNN if isinstance(detector, FasterRCNN) else DomainAdaptiveDense
    return kind(detector, alignment, harmonize_features, pseudo_weight)
