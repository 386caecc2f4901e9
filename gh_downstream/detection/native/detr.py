"""DETRs of transformers: any detector there that reads the feature maps of a convolutional backbone."""

import copy
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert, clip_boxes_to_image

from gh_downstream.detection.alignment import AlignmentConfig
from gh_downstream.detection.native.data import unit_range
from gh_downstream.detection.native.detector import DetectorConfig, freeze_batch_norm
from gh_downstream.detection.native.model import DomainAdaptiveDetector
from gh_downstream.detection.timm_trunk import STRIDES, TimmTrunk
from gh_downstream.harmonization import Weighting
from gh_downstream.training.checkpoint import fill_weights
from gh_downstream.training.hub import load_configuration, load_part
from gh_downstream.training.pretrained import read_pretrained

try:
    import transformers
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForObjectDetection,
        Deimv2Config,  # noqa: F401  5.7 has it; older ones configure backbones in another way.
    )
    from transformers.modeling_outputs import BackboneOutput
except ImportError as error:
    raise ImportError("DETRs need transformers 5.7 or newer: pip install 'gh_downstream[detr]'") from error

logger = logging.getLogger(__name__)

_WEIGHTED = ("rt_detr", "rt_detr_v2", "d_fine", "deimv2")
"""Types whose ``loss_dict`` holds the losses times their weights; of the others it is the sum that is weighted."""

_PROCESSORS = {
    **{"deformable_detr": "DeformableDetr", "detr": "Detr", "table-transformer": "Detr"},
    **dict.fromkeys(["conditional_detr", "dab-detr"], "ConditionalDetr"),
}
"""Image processors, which read the outputs too; ``RTDetr`` for others."""

_ELSEWHERE = {
    **dict.fromkeys(["id2label", "label2id", "num_labels"], "num_classes"),
    **{"backbone": "backbone", "use_pretrained_backbone": "weights"},
    "freeze_backbone_batch_norms": "frozen_batch_norm",
}
"""Keys of transformers' configurations that keys of ours set."""

_HEADS = re.compile(r"(bbox|class|score)[^.]*(\.\d+)?$")
"""Ends of the names of modules that predict boxes and scores."""


@dataclass
class Detr:
    """A DETR of transformers in training mode, the image processor of its kind, and settings of ours."""

    model: Any
    processor: Any
    config: DetectorConfig


class DomainAdaptiveDetr(DomainAdaptiveDetector):
    """A :class:`DomainAdaptiveDetector` around a DETR of transformers.

    It aligns the maps of the backbone. All images of a batch get one size, as RT-DETR and its kin look at no masks of
    padding. The losses are those of the model, with its weights and its auxiliary ones: by kind where it weighs each,
    else as one ``loss_detection``. All of them are learnt from pseudo-labels.

    Args:
        detector: From :func:`build_detr`.
        alignment, harmonize_features, pseudo_weight: As there.

    Raises:
        ValueError: The model is to be adapted with live batch normalization.
    """

    _learnt_from_pseudo_labels = ("*",)

    def __init__(
        self,
        detector: Detr,
        alignment: AlignmentConfig | None = None,
        harmonize_features: Weighting | None = None,
        pseudo_weight: float | None = None,
    ) -> None:
        adapts = alignment is not None or pseudo_weight is not None
        if adapts and any(isinstance(module, nn.BatchNorm2d) for module in detector.model.modules()):
            raise ValueError(
                "where a DETR is adapted, live batch normalization would mix the statistics of both domains in its "
                "backbone, and keep those of source in its encoder: set detector.frozen_batch_norm=true"
            )
        super().__init__(detector.model, alignment, harmonize_features, pseudo_weight)
        self.processor, self.config = detector.processor, detector.config

    @property
    def num_classes(self) -> int:
        """Number of object classes."""
        return self.detector.config.num_labels

    @property
    def shared(self) -> list[str]:  # type: ignore[override]
        """Names of the modules that the task and the alignment losses share, for a Harmonizer's ``shared``."""
        return [f"detector.{self._wrapper}.model"]

    @cached_property
    def _wrapper(self) -> str:
        return _find_wrapper(self.detector)

    def _map_channels(self) -> Sequence[int]:
        return self.detector.get_submodule(self._wrapper).intermediate_channel_sizes

    def _prepare(
        self, images: Sequence[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        sizes = [self.config.min_size, *(self.config.train_sizes if self.training else ())]
        size = _image_size(self.config, sizes[int(torch.randint(len(sizes), ()))] if len(sizes) > 1 else sizes[0])
        given = [*map(unit_range, images)]
        pixels = self.processor(given, do_rescale=False, size=size, return_tensors="pt")["pixel_values"]
        batch = ImageList(pixels, [(image.shape[1], image.shape[2]) for image in images])
        if targets is None:
            return batch, None
        labels = []
        for (height, width), target in zip(batch.image_sizes, targets, strict=True):
            boxes = box_convert(target["boxes"], "xyxy", "cxcywh")
            labels.append({"class_labels": target["labels"], "boxes": boxes / boxes.new_tensor([width, height] * 2)})
        return batch, labels

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        found = self.get_submodule(self.shared[0])(images)
        return {str(level): maps for level, maps in enumerate(getattr(found, "feature_maps", found))}

    def _task_losses(
        self, images: ImageList, maps: dict[str, Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        with _returning(self.get_submodule(self.shared[0]), maps):
            output = self.detector(pixel_values=images.tensors, labels=targets)
        if self.detector.config.model_type not in _WEIGHTED:
            return {"loss_detection": output.loss}, []
        losses: dict[str, Tensor] = {}
        for name, loss in output.loss_dict.items():
            kind = re.sub(r"_(aux|dn)_\d+$", "", name)
            losses[kind] = losses[kind] + loss if kind in losses else loss
        return losses, []

    def _detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        batch, _ = self._prepare(images)
        output = self.detector(pixel_values=batch.tensors)
        found = self.processor.post_process_object_detection(output, self.config.score_threshold, batch.image_sizes)
        detections = []
        for image, size in zip(found, batch.image_sizes, strict=True):
            best = image["scores"].argsort(descending=True, stable=True)[: self.config.detections_per_image]
            kept = {name: values[best] for name, values in image.items()}
            detections.append({**kept, "boxes": clip_boxes_to_image(kept["boxes"], size)})
        return detections

    def export(self, folder: Path, classes: Sequence[str]) -> None:
        """Write a folder that ``AutoModelForObjectDetection`` and ``AutoImageProcessor`` load, with the classes."""
        settings = copy.deepcopy(self.detector.config)
        settings.id2label = dict(enumerate(classes))
        settings.label2id = {name: label for label, name in enumerate(classes)}
        model = AutoModelForObjectDetection.from_config(settings).float()
        model.load_state_dict(self.detector.state_dict(), strict=False)  # frozen normalization counts no batches
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def build_detr(config: DetectorConfig) -> Detr:
    """Build a DETR of transformers from a folder, from the hub or from options, and freeze what is to be frozen.

    What was loaded, and what was not, is logged.

    Raises:
        ValueError: An option or the backbone is unknown, the model does not run with these settings, has no backbone
            whose maps can be aligned, or spoils it; or the weights are those of another model.
        FileNotFoundError: The model or its weights are not there.
        ImportError: scipy or timm is not installed.
    """
    if find_spec("scipy") is None:
        raise ImportError(f"the losses of {config.name} match boxes by scipy: pip install scipy")
    fixed = {"size": _image_size(config, config.min_size), "do_pad": False}
    if config.pretrained is None:
        model, processor = _from_options(config, fixed)
    else:
        model = _from_pretrained(config, config.pretrained)
        processor = load_part(config.pretrained, "image processor", AutoImageProcessor.from_pretrained, **fixed)
        _load_weights(model, None, config)
    _find_wrapper(model)
    if not config.frozen_batch_norm and not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ValueError(f"a {config.name} has no batch normalization to be live: set detector.frozen_batch_norm=true")
    for height in (config.min_size, *config.train_sizes):
        size = _image_size(config, height)
        with _explained(f"{config.name} for images of {size}"), torch.no_grad():
            model.eval()(pixel_values=torch.zeros(1, 3, *size.values()))
    for name, module in model.named_modules():
        if _HEADS.search(name):
            module.register_forward_hook(lambda _, given, output: output.float())  # as in our heads for torchvision
    return Detr((freeze_batch_norm(model) if config.frozen_batch_norm else model).train(), processor, config)


def _image_size(config: DetectorConfig, height: int) -> dict[str, int]:
    return {"height": height, "width": round(config.max_size * height / config.min_size)}


def _from_options(config: DetectorConfig, size: dict[str, Any]) -> tuple[Any, Any]:
    default: Any = AutoConfig.for_model(config.name)
    _check_options(config, default)
    options, trunk, derived, normalization = dict(config.options), None, {}, {}
    if "backbone_config" not in options:
        trunk = TimmTrunk(config.backbone, 5 - config.trainable_layers)
        normalization = {"do_normalize": True, "image_mean": trunk.mean, "image_std": trunk.std}
        derived = _on_trunk(trunk, config.backbone, default, options)
    with _explained(f"{config.name} of detector.options"):
        settings: Any = type(default)(**derived | options, num_labels=config.num_classes)
        if hasattr(settings, "freeze_backbone_batch_norms"):
            settings.freeze_backbone_batch_norms = False  # it would drop the activations in timm's; ours does not
        model = AutoModelForObjectDetection.from_config(settings)
    _load_weights(model, trunk, config)
    processor = getattr(transformers, f"{_PROCESSORS.get(config.name, 'RTDetr')}ImageProcessor")
    return model, processor(**size, **normalization)


def _on_trunk(trunk: TimmTrunk, name: str, default: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options that follow from a backbone of timm."""
    usual = (8, 16, 32) if getattr(default, "num_feature_levels", 1) > 1 else (32,)
    strides = [*options.get("feat_strides", getattr(default, "feat_strides", usual))]
    if not strides or strides != sorted(set(strides) & set(STRIDES)):
        raise ValueError(f"detector.options.feat_strides are some of {STRIDES}, rising, got {strides}")
    places = [STRIDES.index(stride) for stride in strides]
    of_timm: Any = transformers.TimmBackboneConfig
    backbone = of_timm(backbone=name, out_indices=[trunk.indices[place] for place in places])
    derived = {"backbone_config": backbone}
    if hasattr(default, "feat_strides"):
        levels = len(strides)
        derived |= {
            "encoder_in_channels": [trunk.channels[place] for place in places],
            "encode_proj_layers": [levels - 1],
            "decoder_in_channels": [options.get("encoder_hidden_dim", default.encoder_hidden_dim)] * levels,
            **dict.fromkeys(["num_feature_levels", "decoder_n_levels"], levels),
        }
    return {key: value for key, value in derived.items() if hasattr(default, key)}


def _from_pretrained(config: DetectorConfig, place: str) -> Any:
    settings: Any = load_configuration(place, AutoConfig.from_pretrained)
    if settings.model_type != config.name:
        raise ValueError(f"detector.pretrained {place} is a {settings.model_type}, and detector.name a {config.name}")
    _check_options(config, settings)
    settings.update(config.options)
    if not config.frozen_batch_norm and hasattr(settings, "freeze_backbone_batch_norms"):
        settings.freeze_backbone_batch_norms = False
    if settings.num_labels != config.num_classes:
        logger.warning("%s has %d classes: heads for %d are new", place, settings.num_labels, config.num_classes)
        settings.num_labels = config.num_classes
    how = {"config": settings, "ignore_mismatched_sizes": True, "output_loading_info": True}
    model, info = load_part(place, "weights", AutoModelForObjectDetection.from_pretrained, **how)
    renewed = {key for key, *_ in info["mismatched_keys"]}
    if missing := sorted(info["missing_keys"] - renewed):
        raise ValueError(f"the weights of {place} lack {len(missing)} of its tensors: {', '.join(missing[:5])}")
    logger.info("loaded %s from %s%s", type(model).__name__, place, f" but for {sorted(renewed)}" if renewed else "")
    return model.float()


def _check_options(config: DetectorConfig, settings: Any) -> None:
    known = {*settings.to_dict(), *settings.attribute_map} - _ELSEWHERE.keys()
    for key in config.options.keys() - known:
        alike = ", ".join(get_close_matches(key, known)) or "none like it"
        cure = f"set detector.{_ELSEWHERE[key]}" if key in _ELSEWHERE else f"a {config.name} has {alike}"
        raise ValueError(f"unknown key detector.options.{key}: {cure}")


def _find_wrapper(model: nn.Module) -> str:
    """Name of the module that reads the maps of its ``model``, the backbone, for encoder and decoder."""
    found = [name for name, module in model.named_modules() if hasattr(module, "intermediate_channel_sizes")]
    if len(found) != 1:
        raise ValueError(f"this {type(model).__name__} has no convolutional backbone of its own, so no maps to align")
    return found[0]


def _load_weights(model: Any, trunk: TimmTrunk | None, config: DetectorConfig) -> None:
    """Give a model what its backbone of timm has, and the weights of a configuration."""
    name, state, whole = config.backbone, {}, False
    if config.weights is not None:
        known = models.get_model_weights(name).__members__ if name in models.list_models() else {}
        read = read_pretrained(config.weights, name, known)
        state = {key.removeprefix("detector."): value for key, value in read.items()}
        whole = bool(state.keys() & model.state_dict().keys())
        if trunk is not None and not whole:
            fill_weights(trunk.network, state, config.weights, name)
        elif not whole:
            raise ValueError(f"detector.weights {config.weights} are not those of a {config.name}")
    if trunk is not None:
        _copy_trunk(trunk, model, config)
    if whole:
        fill_weights(model, state, str(config.weights), config.name)


def _copy_trunk(trunk: TimmTrunk, model: Any, config: DetectorConfig) -> None:
    backbone = model.get_submodule(_find_wrapper(model)).model
    features = getattr(backbone, "_backbone", backbone)
    norms, left = ([m for m in x.modules() if isinstance(m, nn.BatchNorm2d)] for x in (trunk.network, features))
    if any([*norm.children()] for norm in norms) and not left:
        raise ValueError(
            f"transformers gives the backbone of a {config.name} frozen batch normalization, without the activations "
            f"in that of {config.backbone}: take a resnet, or an rt_detr"
        )
    state = trunk.network.state_dict()
    own = {key if key in features.state_dict() else key.replace(".", "_", 1): key for key in state}
    features.load_state_dict({key: state[own[key]] for key in features.state_dict()})
    for key, parameter in features.named_parameters():
        parameter.requires_grad_(trunk.network.get_parameter(own[key]).requires_grad)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Name the settings in whatever transformers raises where they do not fit each other."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"detector {what} cannot be built: {' '.join(str(error).split())[:300]}") from error


@contextmanager
def _returning(backbone: nn.Module, maps: dict[str, Tensor]) -> Iterator[None]:
    """Have a backbone return these maps, whatever it is called with."""
    output: Any = BackboneOutput
    backbone.forward = lambda *_, **__: output(feature_maps=(*maps.values(),))
    try:
        yield
    finally:
        del backbone.forward
