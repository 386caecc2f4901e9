"""What makes a detector of Detectron2 domain-adaptive: alignment of features, pseudo-labels, and a fork.

:class:`DomainAdaptation` goes before a detector among the bases of a class. The subclass keeps the names of the
detector's parameters and adds ``alignment``, so that checkpoints load in both directions.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gh_downstream.adaptation import check_whole_source, encode_source
from gh_downstream.detection.alignment import AlignmentConfig, DomainAlignment, DomainFeatures
from gh_downstream.detection.detectron2.config import alignment_of
from gh_downstream.detection.pseudo_labels import pseudo_losses
from gh_downstream.detection.strong_weak import StrongWeakAlignment, StrongWeakConfig
from gh_downstream.harmonization import HarmonizationConfig, Measurements, Weighting, fork
from gh_downstream.integrations.detectron2.config import settings_of, with_keys

logger = logging.getLogger(__name__)

Batch = Sequence[Mapping[str, Any]]
Maps = dict[str, Tensor]
Losses = dict[str, Tensor]
Outcome = tuple[Losses, list[Instances]]
"""Losses of the detector, and the proposals of each image, best first."""


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
            if harmonize_features is not None:
                check_whole_source(alignment.source_share)
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
        """Return the losses in training, scalars by name; the detections of the detector otherwise.

        A batch has one dictionary for each image; in any order, with any number of each domain.

        Raises:
            ValueError: In training, an image of source has no labels, or there are no images of a domain that is
                needed, or pseudo-labels for some of the target images only, or an aligned feature map is frozen.
        """
        if not self.training:
            return super().forward(batched_inputs)
        source, target = by_domain(batched_inputs)
        burning_in = self.burn_in_iters > 0 and get_event_storage().iter < self.burn_in_iters
        pseudo = None if burning_in else pseudo_labels(target, self.device)
        images = self.preprocess_image(source)
        share = 1.0 if self.alignment is None else self.alignment.config.source_share
        task_maps, maps = encode_source(self.backbone, images.tensor, share)
        self._check_trained(task_maps)
        if burning_in or (self.alignment is None and pseudo is None):
            losses, _ = self._source_losses(source, images, task_maps)
            return losses | self._idle_losses()
        if not target:
            raise ValueError(
                'the alignment needs images of the target, but no dictionary of the batch has "domain": "target": '
                "name unlabelled data sets in DATASETS.TARGET, or set DA.METHOD none"
            )
        target_images = self.preprocess_image(target)
        target_maps = self.backbone(target_images.tensor)
        target_task_maps = target_maps
        if self.harmonize_features is not None:
            (maps, target_maps), (task_maps, target_task_maps) = fork(
                (maps, target_maps), self.harmonize_features, on_report=self.measurements.add
            )
        losses, proposals = self._source_losses(source, images, task_maps)
        if pseudo is None:
            # After source: under autocast of an older torch, weights that are first cast without gradient stay so.
            target_proposals = self._propose(target, target_images, target_maps)
        else:
            found, target_proposals = self._pseudo_losses(target, target_images, target_task_maps, pseudo)
            losses |= pseudo_losses(found, self.pseudo_weight)
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

    def _losses(self, batch: Batch, images: ImageList, maps: Maps, labels: list[Instances]) -> Outcome:
        """What the detector makes of labelled images."""
        raise NotImplementedError

    def _source_losses(self, batch: Batch, images: ImageList, maps: Maps) -> Outcome:
        """The same on source."""
        return self._losses(batch, images, maps, [x["instances"].to(self.device) for x in batch])

    def _pseudo_losses(self, batch: Batch, images: ImageList, maps: Maps, labels: list[Instances]) -> Outcome:
        """The same on target, with pseudo-labels."""
        with get_event_storage().name_scope("pseudo"):  # The statistics that the heads log are those of source.
            return self._losses(batch, images, maps, labels)

    def _propose(self, batch: Batch, images: ImageList, maps: Maps) -> list[Instances]:
        """Proposals of each image without labels, best first, if the alignment needs them."""
        return []

    def _region_features(self, maps: Maps, proposals: list[Instances]) -> Tensor:
        """Features of the regions of all images, of shape ``[R, _region_channels]``."""
        raise NotImplementedError

    # The rest

    def _build_alignment(self, config: AlignmentConfig | StrongWeakConfig) -> DomainAlignment | StrongWeakAlignment:
        outputs = self.backbone.output_shape()
        if unknown := set(self.align_features) - set(outputs):
            raise ValueError(
                f"align_features (DA.FEATURES): {sorted(unknown)} are no outputs of the backbone; it has {[*outputs]}"
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
            message = with_keys(str(error).replace("alignment.", ""), "DA.IMAGE_INSTANCE", vars(config))
            raise ValueError(f"align_features (DA.FEATURES) {', '.join(self.align_features)}: {message}") from None

    def _check_trained(self, maps: Mapping[str, Tensor]) -> None:
        """Whoever aligns what cannot change has made a mistake that no loss would show."""
        frozen = [name for name in self.align_features if not maps[name].requires_grad]
        if frozen and self.alignment is not None and torch.is_grad_enabled():
            raise ValueError(
                f"align_features (DA.FEATURES): all layers up to {frozen[0]!r} are frozen, so aligning it changes "
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

    def _domain_features(self, maps: Maps, proposals: list[Instances]) -> DomainFeatures:
        """What the alignment sees of one domain."""
        aligned = {name: maps[name] for name in self.align_features}
        if not isinstance(self.alignment, DomainAlignment) or not self.alignment.needs_regions:
            return DomainFeatures(aligned)
        best = [found[: self.alignment.config.instance_regions] for found in proposals]
        return DomainFeatures(aligned, self._region_features(maps, best), [len(found) for found in best])


def by_domain(batch: Batch) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Divide a batch into the images of source, and those of target, which have ``"domain": "target"``.

    Raises:
        ValueError: An image has another domain, one of source has no labels, or there is none of source.
    """
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


def pseudo_labels(target: Batch, device: torch.device) -> list[Instances] | None:
    """The labels that a teacher has given to the images of target; None without.

    Raises:
        ValueError: Some of the images have them, and some have not.
    """
    labelled = [x["pseudo_instances"].to(device) for x in target if "pseudo_instances" in x]
    if len(labelled) not in (0, len(target)):
        raise ValueError(
            f'{len(labelled)} of {len(target)} images of target have "pseudo_instances": give all, or none'
        )
    return labelled or None


@contextmanager
def temporarily(module: Any, **values: Any) -> Iterator[None]:
    """Give attributes, those that there are, other values for a while."""
    before = {name: getattr(module, name) for name in values if hasattr(module, name)}
    try:
        for name in before:
            setattr(module, name, values[name])
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
