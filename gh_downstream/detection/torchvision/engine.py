"""Train and evaluate a domain-adaptive Faster R-CNN of torchvision from one configuration."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, set_seed
from torch import nn
from torch.utils.data import DataLoader, Subset

from gh_downstream.detection.data import DetectionDataset
from gh_downstream.detection.evaluation import RESULTS, APResult, Detection, evaluate_detections, write_detections
from gh_downstream.detection.torchvision.config import METRICS, DetectionConfig
from gh_downstream.detection.torchvision.data import EvaluationImages, StepBatches
from gh_downstream.detection.torchvision.detector import build_detector
from gh_downstream.detection.torchvision.model import DomainAdaptiveFasterRCNN
from gh_downstream.training import Trainer, build_optimizer, config_hash, load_weights, process_state

logger = logging.getLogger(__name__)


def build_model(config: DetectionConfig) -> DomainAdaptiveFasterRCNN:
    """Build the model of a configuration, its initial weights a function of ``training.seed``."""
    set_seed(config.training.seed)
    settings = config.harmonization
    return DomainAdaptiveFasterRCNN(
        build_detector(config.detector),
        config.alignment,
        settings.build_weighting() if settings.at_features else None,
    )


def load_validation(config: DetectionConfig, classes: tuple[str, ...] | None = None) -> dict[str, DetectionDataset]:
    """Read the validation sets of a configuration by name.

    Args:
        config: The configuration.
        classes: Names of the classes, for COCO-format data; those of the source's file by default.
    """
    if classes is None and config.source.format == "coco":
        classes = config.source.load().classes
    return {name: dataset.load(classes) for name, dataset in config.validation.items()}


def build_trainer(config: DetectionConfig) -> Trainer:
    """Read the data and build everything that a training needs.

    Raises:
        ValueError: The data sets and the model do not fit each other.
    """
    source = config.source.load()
    target = None if config.target is None else config.target.load(source.classes, labels=False)
    validation = load_validation(config, source.classes)
    _check_classes(config, source)
    model = build_model(config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def evaluate(model: nn.Module) -> dict[str, float]:
        results = evaluate_model(model, validation, Path(config.output) / "detections", config.training.workers)
        if PartialState().is_main_process:
            RESULTS.write(config.output, config_hash(config), results)
        return {f"{name}/{metric}": getattr(result, metric) for name, result in results.items() for metric in METRICS}

    return Trainer(
        config,
        model,
        build_optimizer(config.optimizer, trained),
        StepBatches(source, target, config.batch_size, config.flip, config.training.seed),
        evaluate if validation else None,
    )


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
    load_weights(model, Path(checkpoint))
    results = evaluate_model(
        model.to(state.device).eval(),
        load_validation(config),
        Path(config.output) / "detections",
        config.training.workers,
    )
    if state.is_main_process:
        RESULTS.write(config.output, config_hash(config), results)
    return results


@torch.no_grad()
def evaluate_model(
    model: nn.Module, datasets: Mapping[str, DetectionDataset], folder: Path, workers: int = 0
) -> dict[str, APResult]:
    """Detect on data sets, share the images among the processes, and measure the average precision.

    Args:
        model: In evaluation mode, on its device.
        datasets: Labelled data sets by name.
        folder: Where ``NAME.json`` with the detections goes, in COCO's result format but for categories from 0.
        workers: Processes that read images.

    Returns:
        The results by name, the same in every process.
    """
    state = PartialState()
    results = {}
    for name, dataset in datasets.items():
        share = range(state.process_index, len(dataset), state.num_processes)
        images = DataLoader(Subset(EvaluationImages(dataset), share), batch_size=None, num_workers=workers)
        detections: list[Detection] = []
        for record, image in images:
            (found,) = model([image.to(state.device)])
            boxes = torch.cat([found["boxes"][:, :2], found["boxes"][:, 2:] - found["boxes"][:, :2]], dim=1)
            for box, label, score in zip(*(x.tolist() for x in (boxes, found["labels"], found["scores"])), strict=True):
                detections.append({"image_id": record["image_id"], "category_id": label, "bbox": box, "score": score})
        detections = gather_object(detections)
        results[name] = evaluate_detections(dataset, detections)
        if state.is_main_process:
            write_detections(folder, name, detections)
    return results


def show_results(config: DetectionConfig) -> None:
    """Print the tables of the results in the output folder, in the main process."""
    if config.validation and PartialState().is_main_process:
        for table in RESULTS.tables(config.output):
            table.show()


def _check_classes(config: DetectionConfig, source: DetectionDataset) -> None:
    if len(source.classes) != config.detector.num_classes:
        raise ValueError(
            f"detector.num_classes is {config.detector.num_classes}, but {source.name} has {len(source.classes)} "
            f"classes: {', '.join(source.classes)}"
        )
