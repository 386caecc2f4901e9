"""Detectron2's detectors with domain adaptation: alignment of features, pseudo-labels, and a fork for harmonization.

:class:`DomainAdaptation` goes before a detector among the bases of a class. The subclass keeps the names of the
detector's parameters and adds ``alignment``, so that checkpoints load in both directions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gh_downstream.detection.alignment import AlignmentConfig, DomainAlignment, DomainFeatures
from gh_downstream.detection.detectron2.config import alignment_of
from gh_downstream.detection.strong_weak import StrongWeakAlignment, StrongWeakConfig
from gh_downstream.harmonization import HarmonizationConfig, Measurements, Weighting, fork
from gh_downstream.integrations.detectron2 import settings_of

logger = logging.getLogger(__name__)

Batch = Sequence[Mapping[str, Any]]
Losses = dict[str, Tensor]


class DomainAdaptation(nn.Module):
    """What makes a detector of Detectron2 domain-adaptive; in evaluation it is the detector, unchanged.

    A training batch is one list of Detectron2's dictionaries: those of source, and those of target, which have
    ``"domain": "target"``. The labels of source are in ``"instances"``, as ever. The model never looks at
    ``"instances"`` of target; pseudo-labels of a teacher are in ``"pseudo_instances"`` (``gt_boxes`` in pixels of
    ``"image"`` and ``gt_classes``), of all target images of a batch or of none. An image may have no pseudo-label.

    The losses in training are those of the detector on source, by the same keys; with pseudo-labels its
    classification losses on target, as ``KEY_pseudo`` (boxes and masks of pseudo-labels are not learnt, as in Unbiased
    Teacher, Liu et al., ICLR 2021, arXiv 2102.09480); and those of the alignment. Source and target go through the
    backbone in separate forward passes, so that harmonizing the task with the alignment costs one more backward pass
    through the source half only.

    Args:
        alignment: What is aligned, and how; None aligns nothing, and then there are no discriminators.
        align_features: Outputs of the backbone to align; by default those that the detector's heads read.
        burn_in_iters: Iterations that ignore the target. The losses of the alignment are zeros then, which reach the
            discriminators (with gradients of zero, for ``DistributedDataParallel``) but not the features.
        pseudo_weight: Weight of the losses on pseudo-labels.
        harmonize_features: A weighting to harmonize the gradients of alignment and task with, at the outputs of the
            backbone for both domains, by :func:`~gh_downstream.fork`; train on the plain sum of the losses then. With
            None that is the plain sum, or harmonized at the parameters.
        **detector: The arguments of the detector.

    Attributes:
        alignment: The discriminators, or None.
        align_features: Names of the aligned feature maps.
        measurements: With ``harmonize_features``, what was measured in the backward passes after the burn-in;
            :class:`GradientHarmonizationHook` with ``measure="features"`` logs it.

    Raises:
        ValueError: The alignment does not fit the detector, there is no such feature map, or there is nothing to
            harmonize.
    """

    backbone: Any
    preprocess_image: Any
    device: Any

    @configurable
    def __init__(
        self,
        *,
        alignment: AlignmentConfig | StrongWeakConfig | None = None,
        align_features: Sequence[str] = (),
        burn_in_iters: int = 0,
        pseudo_weight: float = 1.0,
        harmonize_features: Weighting | None = None,
        **detector: Any,
    ) -> None:
        super().__init__(**detector)
        if harmonize_features is not None and alignment is None:
            raise ValueError("harmonize_features (GH.MEASURE features) needs an alignment, but DA.METHOD is none")
        self.align_features = tuple(align_features) or tuple(self._head_features())
        self.burn_in_iters = burn_in_iters
        self.pseudo_weight = pseudo_weight
        self.harmonize_features = harmonize_features
        self.measurements = Measurements()
        self.alignment: DomainAlignment | StrongWeakAlignment | None = None
        if alignment is not None:
            self.alignment = self._build_alignment(alignment)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments of a model from a config with the nodes ``DA`` and ``TEACHER``, and ``GH`` if there is one."""
        settings = settings_of(cfg) if "GH" in cfg else HarmonizationConfig()
        return {
            "alignment": alignment_of(cfg),
            "align_features": cfg.DA.FEATURES,
            "burn_in_iters": cfg.DA.BURN_IN_ITERS,
            "pseudo_weight": cfg.TEACHER.LOSS_WEIGHT,
            "harmonize_features": settings.build_weighting() if settings.at_features else None,
            **super().from_config(cfg),  # type: ignore[misc]  # of the detector
        }

    @property
    def shared(self) -> list[str]:
        """Names of the modules that the task and the alignment losses share, for a Harmonizer's ``shared``."""
        return ["backbone"]

    def forward(self, batched_inputs: Batch) -> Any:
        """Return the losses in training, the detections of the detector otherwise.

        Args:
            batched_inputs: One dictionary for each image; in any order, with any number of each domain.

        Returns:
            In training scalars by name; in evaluation what the detector returns.

        Raises:
            ValueError: In training, an image of source has no labels, or there are no images of a domain that is
                needed, or pseudo-labels for some of the target images only, or an aligned feature map is frozen.
        """
        if not self.training:
            return super().forward(batched_inputs)
        source, target = _by_domain(batched_inputs)
        burning_in = self.burn_in_iters > 0 and get_event_storage().iter < self.burn_in_iters
        pseudo = None if burning_in else _pseudo_labels(target, self.device)
        images = self.preprocess_image(source)
        maps = self.backbone(images.tensor)
        self._check_trained(maps)
        if burning_in or (self.alignment is None and pseudo is None):
            losses, _ = self._source_losses(source, images, maps)
            return losses | self._idle_losses()
        if not target:
            raise ValueError(
                'the alignment needs images of the target, but no dictionary of the batch has "domain": "target": '
                "name unlabelled data sets in DATASETS.TARGET, or set DA.METHOD none"
            )
        target_images = self.preprocess_image(target)
        target_maps = self.backbone(target_images.tensor)
        task_maps, target_task_maps = maps, target_maps
        if self.harmonize_features is not None:
            maps, target_maps, task_maps, target_task_maps = self._fork(maps, target_maps)
        losses, proposals = self._source_losses(source, images, task_maps)
        if pseudo is None:
            # After source: under autocast of an older torch, weights that are first cast without gradient stay so.
            target_proposals = self._propose(target, target_images, target_maps)
        else:
            found, target_proposals = self._pseudo_losses(target, target_images, target_task_maps, pseudo)
            losses |= {f"{key}_pseudo": self.pseudo_weight * loss for key, loss in found.items() if "cls" in key}
        if self.alignment is not None:
            losses |= self.alignment(
                self._domain_features(maps, proposals), self._domain_features(target_maps, target_proposals)
            )
        return losses

    # What a detector supplies

    def _head_features(self) -> Sequence[str]:
        """Names of the feature maps that the heads read."""
        raise NotImplementedError

    def _region_channels(self) -> int:
        """Length of the features of a region; 0 without regions."""
        return 0

    def _losses(
        self, batch: Batch, images: ImageList, maps: dict[str, Tensor], labels: list[Instances]
    ) -> tuple[Losses, list[Instances]]:
        """Losses of the detector, and the proposals of each image, best first."""
        raise NotImplementedError

    def _source_losses(
        self, batch: Batch, images: ImageList, maps: dict[str, Tensor]
    ) -> tuple[Losses, list[Instances]]:
        """The same on source."""
        return self._losses(batch, images, maps, [x["instances"].to(self.device) for x in batch])

    def _pseudo_losses(
        self, batch: Batch, images: ImageList, maps: dict[str, Tensor], labels: list[Instances]
    ) -> tuple[Losses, list[Instances]]:
        """The same on target, with pseudo-labels."""
        with get_event_storage().name_scope("pseudo"):  # The statistics that the heads log are those of source.
            return self._losses(batch, images, maps, labels)

    def _propose(self, batch: Batch, images: ImageList, maps: dict[str, Tensor]) -> list[Instances]:
        """Proposals of each image without labels, best first, if the alignment needs them."""
        return []

    def _region_features(self, maps: dict[str, Tensor], proposals: list[Instances]) -> Tensor:
        """Features of the regions of all images, of shape ``[R, _region_channels]``."""
        raise NotImplementedError

    # The rest

    def _build_alignment(self, config: AlignmentConfig | StrongWeakConfig) -> DomainAlignment | StrongWeakAlignment:
        outputs = self.backbone.output_shape()
        for name in self.align_features:
            if name not in outputs:
                raise ValueError(
                    f"align_features (DA.FEATURES): {name!r} is no output of the backbone; it has {', '.join(outputs)}"
                )
        if getattr(config, "instance_weight", 0) and not self._region_channels():
            raise ValueError(
                f"{type(self).__name__} has no features of regions to align: set DA.IMAGE_INSTANCE.INSTANCE_WEIGHT and "
                "DA.IMAGE_INSTANCE.CONSISTENCY_WEIGHT to 0.0"
            )
        if any(isinstance(module, _BatchNorm) for module in self.modules()):
            logger.warning(
                "adapting with live batch normalization mixes the statistics of the domains; freeze it "
                "(MODEL.RESNETS.NORM FrozenBN)"
            )
        channels = [outputs[name].channels for name in self.align_features]
        try:
            if isinstance(config, StrongWeakConfig):
                return StrongWeakAlignment(channels, config)
            return DomainAlignment(channels, self._region_channels(), config)
        except ValueError as error:
            raise ValueError(f"align_features (DA.FEATURES) {', '.join(self.align_features)}: {error}") from None

    def _check_trained(self, maps: Mapping[str, Tensor]) -> None:
        """Whoever aligns what cannot change has made a mistake that no loss would show."""
        if self.alignment is None or not torch.is_grad_enabled():
            return
        for name in self.align_features:
            if not maps[name].requires_grad:
                raise ValueError(
                    f"align_features (DA.FEATURES): all layers up to {name!r} are frozen, so aligning it changes "
                    "nothing: freeze less (MODEL.BACKBONE.FREEZE_AT), or align other outputs of the backbone"
                )

    def _idle_losses(self) -> Losses:
        """The losses of the alignment on no image at all: zeros, with gradients of zero for the discriminators."""
        if self.alignment is None:
            return {}
        outputs = self.backbone.output_shape()
        maps = {name: torch.zeros(0, outputs[name].channels, 1, 1, device=self.device) for name in self.align_features}
        nothing = DomainFeatures(maps, torch.zeros(0, self._region_channels(), device=self.device))
        return self.alignment(nothing, nothing)

    def _fork(
        self, source: dict[str, Tensor], target: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Source and target maps for the alignment, and both for the task, harmonized jointly."""
        branches = fork(
            [*source.values(), *target.values()], self.harmonize_features, ("alignment", "task"), self.measurements.add
        )
        n = len(source)
        (aligned, aligned_target), (task, task_target) = (
            (dict(zip(source, maps[:n], strict=True)), dict(zip(target, maps[n:], strict=True))) for maps in branches
        )
        return aligned, aligned_target, task, task_target

    def _domain_features(self, maps: dict[str, Tensor], proposals: list[Instances]) -> DomainFeatures:
        """What the alignment sees of one domain."""
        aligned = {name: maps[name] for name in self.align_features}
        if not isinstance(self.alignment, DomainAlignment) or not self.alignment.needs_regions:
            return DomainFeatures(aligned)
        best = [found[: self.alignment.config.instance_regions] for found in proposals]
        return DomainFeatures(aligned, self._region_features(maps, best), [len(found) for found in best])


@META_ARCH_REGISTRY.register()
class DomainAdaptiveRCNN(DomainAdaptation, GeneralizedRCNN):
    """A ``GeneralizedRCNN`` that aligns the features of source and target while it learns to detect on source.

    Faster, Mask and Cascade R-CNN with any backbone: with ``StandardROIHeads`` and what derives from them (FPN, DC5,
    VGG16, ViT, Swin), and with ``Res5ROIHeads`` (C4). The instance-level features are a second pass of the box head (of
    the first stage of a cascade) over the best proposals of both domains.

    The arguments are those of :class:`DomainAdaptation` and of ``GeneralizedRCNN``; from a config, see
    :func:`add_adaptation_config`.
    """

    proposal_generator: Any
    roi_heads: Any
    vis_period: int
    visualize_training: Any

    @property
    def shared(self) -> list[str]:
        """Names of the modules that the task and the alignment losses share, for a Harmonizer's ``shared``."""
        if self.alignment is None or not self.alignment.needs_regions:
            return ["backbone"]
        if isinstance(self.roi_heads, Res5ROIHeads):
            return ["backbone", "roi_heads.res5"]
        cascade = isinstance(self.roi_heads.box_head, nn.ModuleList)
        return ["backbone", "roi_heads.box_head.0" if cascade else "roi_heads.box_head"]

    def _head_features(self) -> Sequence[str]:
        return self.roi_heads.in_features

    def _region_channels(self) -> int:
        if not isinstance(self.roi_heads, (Res5ROIHeads, StandardROIHeads)):
            return 0
        return _first(self.roi_heads.box_predictor).cls_score.in_features

    def _losses(
        self, batch: Batch, images: ImageList, maps: dict[str, Tensor], labels: list[Instances] | None
    ) -> tuple[Losses, list[Instances]]:
        proposals, losses = self._proposals(batch, images, maps, labels)
        _, region_losses = self.roi_heads(images, maps, proposals, labels)
        return {**region_losses, **losses}, proposals

    def _source_losses(
        self, batch: Batch, images: ImageList, maps: dict[str, Tensor]
    ) -> tuple[Losses, list[Instances]]:
        losses, proposals = super()._source_losses(batch, images, maps)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batch, proposals)
        return losses, proposals

    def _pseudo_losses(
        self, batch: Batch, images: ImageList, maps: dict[str, Tensor], labels: list[Instances]
    ) -> tuple[Losses, list[Instances]]:
        # Pseudo-labels have no masks and keypoints.
        with _with(self.roi_heads, mask_on=False, keypoint_on=False):
            return super()._pseudo_losses(batch, images, maps, labels)

    @torch.no_grad()
    def _propose(self, batch: Batch, images: ImageList, maps: dict[str, Tensor]) -> list[Instances]:
        if self.alignment is None or not self.alignment.needs_regions:
            return []
        # Only its own flag, which says whether there are labels: its layers stay in training mode.
        with _with(self.proposal_generator, training=False):
            return self._proposals(batch, images, maps, None)[0]

    def _proposals(
        self, batch: Batch, images: ImageList, maps: dict[str, Tensor], labels: list[Instances] | None
    ) -> tuple[list[Instances], Losses]:
        if self.proposal_generator is None:  # precomputed
            return [x["proposals"].to(self.device) for x in batch], {}
        return self.proposal_generator(images, maps, labels)

    def _region_features(self, maps: dict[str, Tensor], proposals: list[Instances]) -> Tensor:
        heads = self.roi_heads
        levels = [maps[name] for name in heads.in_features]
        boxes = [found.proposal_boxes for found in proposals]
        if isinstance(heads, Res5ROIHeads):
            return heads._shared_roi_transform(levels, boxes).mean(dim=(2, 3))
        return _first(heads.box_head)(heads.box_pooler(levels, boxes)).flatten(1)


class _Dense(DomainAdaptation):
    """What the dense detectors have in common: alignment of feature maps alone."""

    head: Any
    head_in_features: Sequence[str]
    forward_training: Any
    loss_normalizer: float

    def get_extra_state(self) -> Tensor:
        """The running mean that the losses are divided by; Detectron2 keeps it out of its checkpoints."""
        return torch.tensor(getattr(self, "loss_normalizer", math.nan), dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        if not state.isnan():  # an FCOS that has taken no step has none yet
            self.loss_normalizer = state.item()

    def _head_features(self) -> Sequence[str]:
        return self.head_in_features

    def _losses(
        self, batch: Batch, images: ImageList, maps: dict[str, Tensor], labels: list[Instances]
    ) -> tuple[Losses, list[Instances]]:
        levels = [maps[name] for name in self.head_in_features]
        return self.forward_training(images, levels, self.head(levels), labels), []

    def _pseudo_losses(
        self, batch: Batch, images: ImageList, maps: dict[str, Tensor], labels: list[Instances]
    ) -> tuple[Losses, list[Instances]]:
        # The running mean of the number of positive anchors, by which the losses are divided, is that of source.
        with _with(self, loss_normalizer=self.loss_normalizer):
            return super()._pseudo_losses(batch, images, maps, labels)


@META_ARCH_REGISTRY.register()
class DomainAdaptiveRetinaNet(_Dense, RetinaNet):
    """A ``RetinaNet`` that aligns feature maps of source and target while it learns to detect on source.

    The arguments are those of :class:`DomainAdaptation` and of ``RetinaNet``. There are no regions: with
    ``image_instance`` set the weights of the instance-level and of the consistency loss to 0.
    """


class DomainAdaptiveFCOS(_Dense, FCOS):
    """An ``FCOS`` that aligns feature maps of source and target; as Detectron2's, for a LazyConfig only.

    The arguments are those of :class:`DomainAdaptation` and of ``FCOS``; see :class:`DomainAdaptiveRetinaNet`.
    """


def _by_domain(batch: Batch) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The images of source and those of target."""
    domains: dict[str, list[Mapping[str, Any]]] = {"source": [], "target": []}
    for entry in batch:
        domain = entry.get("domain", "source")
        name = entry.get("file_name", "an image of the batch")
        if domain not in domains:
            raise ValueError(f'{name}: "domain" is source or target, got {domain!r}')
        if domain == "source" and "instances" not in entry:
            raise ValueError(f'{name}: no "instances" to learn from; is it of the target, without "domain": "target"?')
        domains[domain].append(entry)
    if not domains["source"]:
        raise ValueError("a training batch needs images of source")
    return domains["source"], domains["target"]


def _pseudo_labels(target: Batch, device: torch.device) -> list[Instances] | None:
    """The labels that a teacher has given to the images of target; None without."""
    labelled = [x["pseudo_instances"].to(device) for x in target if "pseudo_instances" in x]
    if len(labelled) not in (0, len(target)):
        raise ValueError(
            f'{len(labelled)} of {len(target)} images of target have "pseudo_instances": give all, or none'
        )
    return labelled or None


def _first(head: Any) -> Any:
    """The head of the first stage of a cascade, or the only one."""
    return head[0] if isinstance(head, nn.ModuleList) else head


@contextmanager
def _with(module: Any, **values: Any) -> Iterator[None]:
    """Give attributes, those that there are, other values for a while."""
    before = {name: getattr(module, name) for name in values if hasattr(module, name)}
    try:
        for name in before:
            setattr(module, name, values[name])
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
