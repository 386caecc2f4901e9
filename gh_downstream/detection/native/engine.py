"""Train and evaluate a domain-adaptive detector of torchvision from one configuration."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, set_seed
from torch import nn
from torch.utils.data import DataLoader

from gh_downstream.data.images import check_readable
from gh_downstream.detection.data import DetectionDataset
from gh_downstream.detection.data.classes import Classes
from gh_downstream.detection.evaluation import (
    RESULTS,
    APResult,
    Detection,
    detections_of,
    evaluate_detections,
    write_detections,
)
from gh_downstream.detection.native.config import METRICS, DetectionConfig
from gh_downstream.detection.native.data import StepBatches, with_image
from gh_downstream.detection.native.detector import build_detector
from gh_downstream.detection.native.model import DomainAdaptiveDetector, adaptive_model
from gh_downstream.detection.native.teacher import MeanTeacher
from gh_downstream.training import (
    Trainer,
    build_optimizer,
    config_hash,
    evaluation_precision,
    load_all_weights,
    process_state,
    shared_map,
)
from gh_downstream.training.export import write_card

logger = logging.getLogger(__name__)


def build_model(config: DetectionConfig) -> DomainAdaptiveDetector:
    """Build the model of a configuration, its initial weights a function of ``training.seed``."""
    set_seed(config.training.seed)
    settings = config.harmonization
    rest = (
        config.alignment,
        settings.build_weighting() if settings.at_features else None,
        None if config.teacher is None else config.teacher.loss_weight,
    )
    if config.detector.of_torchvision:
        return adaptive_model(build_detector(config.detector), *rest)
    from gh_downstream.detection.native.detr import DomainAdaptiveDetr, build_detr

    return DomainAdaptiveDetr(build_detr(config.detector), *rest)


def load_validation(config: DetectionConfig, classes: Classes) -> dict[str, DetectionDataset]:
    """Read the validation sets of a configuration by name, with the labels of some classes.

    Raises:
        FileNotFoundError, ValueError: One cannot be read, lacks a class, or has no boxes.
    """
    datasets = {name: dataset.load(classes) for name, dataset in config.validation.items()}
    for name, dataset in datasets.items():
        if not dataset.num_boxes:
            raise ValueError(f"validation.{name}: {dataset.name} has no boxes of these classes, and so no precision")
    return datasets


def build_trainer(config: DetectionConfig) -> Trainer:
    """Read the data and build everything that a training needs.

    Raises:
        ValueError: The data sets and the model do not fit each other.
    """
    source, target, validation = _load_data(config)
    model = build_model(config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    teachers = [] if config.teacher is None else [MeanTeacher(config.teacher, source.classes)]
    views_from = None if config.teacher is None else config.teacher.burn_in_steps

    def evaluate(model: nn.Module) -> dict[str, float]:
        results = _evaluate(config, model, validation)
        return {f"{name}/{metric}": getattr(result, metric) for name, result in results.items() for metric in METRICS}

    return Trainer(
        config,
        model,
        build_optimizer(config.optimizer, trained),
        StepBatches(source, target, config.batch_size, config.flip, config.training.seed, views_from),
        evaluate if validation else None,
        teachers,
    )


def check_data(config: DetectionConfig) -> None:
    """Read all data and decode every image of them; nothing is trained.

    Raises:
        FileNotFoundError, ValueError: As :func:`build_trainer`, but for the model.
    """
    source, target, validation = _load_data(config)
    datasets = [source, *([] if target is None else [target]), *validation.values()]
    count = check_readable(record["file_name"] for dataset in datasets for record in dataset.records)
    logger.info("all %d images can be read", count)


def evaluate_checkpoint(config: DetectionConfig, checkpoint: str | Path) -> dict[str, APResult]:
    """Evaluate the weights in a checkpoint on the validation sets of a configuration.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint or the data do not fit, or nothing is to be evaluated.
    """
    if not config.validation:
        raise ValueError("the configuration names no validation set to evaluate on")
    state = process_state()
    model = build_model(config)
    load_all_weights(model, Path(checkpoint), "detector.")
    return _evaluate(config, model.to(state.device).eval(), load_validation(config, config.read_classes()))


def export_detector(
    config: DetectionConfig, checkpoint: str | Path, folder: str | Path, repository: str | None = None
) -> None:
    """Write the DETR of a checkpoint and its image processor to a folder, as transformers reads them, and a model card.

    Raises:
        FileNotFoundError: There is no such checkpoint, or no list of the classes.
        ValueError: The detector is none of transformers, or the checkpoint does not fit.
    """
    model: Any = build_model(config)
    if config.detector.of_torchvision:
        raise ValueError(f"a {config.detector.name} has no format but its checkpoint; the DETRs of transformers have")
    load_all_weights(model, Path(checkpoint), "detector.")
    folder, classes, task = Path(folder), list(config.read_classes()), "object-detection"
    named = config.detector.pretrained or f"{config.detector.name}, {config.detector.backbone}"
    load = f'from_pretrained("{repository or "."}")'
    loading = (
        "from transformers import AutoImageProcessor, AutoModelForObjectDetection\n\n"
        f"model = AutoModelForObjectDetection.{load}\nprocessor = AutoImageProcessor.{load}"
    )
    write_card(folder, config, Path(checkpoint), named, task, "transformers", task, loading, repository)
    model.export(folder, classes)


@torch.no_grad()
def _evaluate(config: DetectionConfig, model: nn.Module, datasets: dict[str, DetectionDataset]) -> dict[str, APResult]:
    """Detect, each process on its share of the images, and write detections and results into the output folder."""
    state = PartialState()
    results = {}
    for name, dataset in datasets.items():
        share: Any = dataset.records[state.process_index :: state.num_processes]
        detections: list[Detection] = []
        read: Any = with_image  # of one record, as there are no batches
        workers = config.training.loaders
        pinned = state.device.type == "cuda"
        for record, image in DataLoader(share, None, num_workers=workers, collate_fn=read, pin_memory=pinned):
            with evaluation_precision(config.training.mixed_precision):
                (found,) = model([image.to(state.device, non_blocking=True)])
            detections += detections_of(record["image_id"], found["boxes"], found["labels"], found["scores"])
        detections = gather_object(detections)
        (results[name],) = shared_map(partial(evaluate_detections, dataset), [detections])
        if state.is_main_process:
            write_detections(Path(config.output) / "detections", name, detections)
    if state.is_main_process:
        RESULTS.write(config.output, config_hash(config), results)
    return results


def show_results(config: DetectionConfig) -> None:
    """Print the tables of the results in the output folder, in the main process."""
    if config.validation and PartialState().is_main_process:
        for table in RESULTS.tables(config.output):
            table.show()


def _load_data(
    config: DetectionConfig,
) -> tuple[DetectionDataset, DetectionDataset | None, dict[str, DetectionDataset]]:
    classes = config.read_classes()
    source = config.source.load(classes)
    if not source.num_boxes:
        raise ValueError(f"source: {source.name} has no boxes of these classes, and nothing to learn from")
    target = None if config.target is None else config.target.load(labels=False)
    return source, target, load_validation(config, classes)
