"""Train and evaluate an image classifier from one configuration."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, set_seed
from torch import nn

from gh_downstream.classification.backbones import Backbone, build_backbone, check_images
from gh_downstream.classification.batches import StepBatches, evaluation_batches
from gh_downstream.classification.config import ClassificationConfig
from gh_downstream.classification.data import ClassificationDataset, DataConfig, build_transform, load_dataset
from gh_downstream.classification.evaluation import METRICS, RESULTS, ClassificationResult, evaluate_predictions
from gh_downstream.classification.features import frozen_trunk, with_features
from gh_downstream.classification.methods import Method, build_method
from gh_downstream.data.images import SUFFIXES, check_readable, list_images
from gh_downstream.data.skipped import listed
from gh_downstream.training import (
    Trainer,
    build_optimizer,
    config_hash,
    evaluation_precision,
    load_all_weights,
    parameter_groups,
    process_state,
)

logger = logging.getLogger(__name__)


def build_model(config: ClassificationConfig, num_classes: int, num_features: int | None = None) -> Method:
    """Build the model of a configuration, its initial weights a function of ``training.seed``.

    Args:
        config: The configuration.
        num_classes: Number of classes.
        num_features: Number of features that it takes in the place of an image; None for images.

    Raises:
        ValueError: The backbone or an option is unknown, or they do not fit; the backbone takes other images than the
            transform makes.
        FileNotFoundError: The weights that are asked for are not there.
    """
    set_seed(config.training.seed)
    options: Any = {"norm": config.bottleneck_norm, "dropout": config.bottleneck_dropout}
    if num_features is None:
        backbone = build_backbone(config.backbone, config.weights, config.bottleneck, **options)
        check_images(config.backbone, config.weights, config.transform)
    else:
        backbone = Backbone(nn.Identity(), num_features, config.bottleneck, **options)
    model = build_method(config.method, backbone, num_classes, getattr(config.method_options, config.method, None))
    model.trade_offs_after = config.trade_offs == "after"
    model.separate_domains = config.separate_domains
    model.source_share = config.source_share
    return model


def build_trainer(config: ClassificationConfig) -> Trainer:
    """Read the data and build everything that a training needs.

    Raises:
        FileNotFoundError: A file or folder of the data does not exist.
        ValueError: The data sets, the model and the configuration do not fit each other, or a file is no image.
    """
    source = _load(config, config.source)
    if source.labels is None:
        raise ValueError(f"source: {source.name} has no labels")
    target = None if config.target is None else _load(config, config.target, labels=False).unlabelled()
    validation = load_validation(config, source)
    if config.features is None:
        check_readable(_files(source, target, *validation.values()), pixels=False)
    transform = build_transform(config.transform, config.crop)
    model = build_model(config, len(source.classes), source.num_features)
    training = config.training
    target = target if model.needs_target else None
    batches = StepBatches(source, target, transform, config.batch_size, training.steps, training.seed)

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Method)
        results = _evaluate(config, model, validation)
        return {f"{name}/{metric}": getattr(result, metric) for name, result in results.items() for metric in METRICS}

    return Trainer(
        config,
        model,
        build_optimizer(config.optimizer, parameter_groups(model, config.optimizer, config.learning_rates)),
        batches,
        evaluate if validation else None,
    )


def check_data(config: ClassificationConfig) -> None:
    """Read all data and decode every image file of them; nothing is trained.

    Raises:
        FileNotFoundError, ValueError: As :func:`build_trainer`, but for the model.
    """
    source = _load(config, config.source)
    target = None if config.target is None else _load(config, config.target, labels=False)
    count = check_readable(_files(source, target, *load_validation(config, source).values()))
    logger.info("all %d image files can be read", count)


def _load(config: ClassificationConfig, data: DataConfig, labels: bool = True) -> ClassificationDataset:
    return with_features(config, data, load_dataset(data, labels))


def _files(*datasets: ClassificationDataset | None) -> Iterator[str]:
    """The images that are files; the others are in memory."""
    return (image for dataset in datasets if dataset for image in dataset.images if isinstance(image, str))


def load_validation(config: ClassificationConfig, source: ClassificationDataset) -> dict[str, ClassificationDataset]:
    """Read the validation sets of a configuration by name.

    Raises:
        ValueError: One has no labels, or other classes than the source.
    """
    validation = {name: _load(config, data) for name, data in config.validation.items()}
    for name, dataset in validation.items():
        if dataset.labels is None:
            raise ValueError(f"validation.{name}: {dataset.name} has no labels")
        if dataset.classes != source.classes:
            raise ValueError(
                f"validation.{name}: {dataset.name} has the classes {listed(dataset.classes, ', ')}, the source "
                f"{source.name} has {listed(source.classes, ', ')}"
            )
    return validation


def evaluate_checkpoint(config: ClassificationConfig, checkpoint: str | Path) -> dict[str, ClassificationResult]:
    """Evaluate the weights in a checkpoint on the validation sets of a configuration.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint or the data do not fit, or nothing is to be evaluated.
    """
    if not config.validation:
        raise ValueError("the configuration names no validation set to evaluate on")
    process_state()
    source = _load(config, config.source)
    validation = load_validation(config, source)
    return _evaluate(config, load_model(config, checkpoint, source), validation)


def load_model(config: ClassificationConfig, checkpoint: str | Path, source: ClassificationDataset) -> Method:
    """Return the model of a configuration with the weights in a checkpoint, on its device in evaluation mode.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: It does not fit.
    """
    # What it was trained from is overwritten, and may not be at hand.
    model = build_model(dataclasses.replace(config, weights=None), len(source.classes), source.num_features)
    load_all_weights(model, Path(checkpoint))
    return model.to(process_state().device).eval()


@torch.no_grad()
def predict(config: ClassificationConfig, checkpoint: str | Path, folder: str | Path) -> list[tuple[str, str, float]]:
    """Classify the images of a folder, and of the folders in it, in one process.

    The names of the classes are those of the configuration's source, which has to be at hand.

    Returns:
        For each image its path, its most likely class and the probability of that.

    Raises:
        FileNotFoundError: There is no such folder or checkpoint, or no source.
        ValueError: The checkpoint does not fit, or the folder has no images, or one that cannot be read.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the one that holds the images")
    files = list_images(Path(folder))
    if not files:
        raise ValueError(f"{folder} has no images ({', '.join(SUFFIXES)})")
    check_readable(files, pixels=False)
    source = _load(config, config.source)
    classes = source.classes
    model = load_model(config, checkpoint, source)
    trunk = nn.Identity() if config.features is None else frozen_trunk(config)
    dataset = ClassificationDataset(str(folder), files, None, classes)
    found = []
    for indices, images in evaluation_batches(config, dataset, range(len(files))):
        with evaluation_precision(config.training.mixed_precision):
            logits = model.classify(trunk(images.to(process_state().device)))
        best = logits.float().softmax(dim=1).max(dim=1)
        rows = zip(indices, best.indices.tolist(), best.values.tolist(), strict=True)
        found += [(files[index], classes[label], probability) for index, label, probability in rows]
    return found


@torch.no_grad()
def _evaluate(
    config: ClassificationConfig, model: Method, datasets: Mapping[str, ClassificationDataset]
) -> dict[str, ClassificationResult]:
    """Classify labelled data sets, share the images among the processes, measure the accuracy, and write it.

    The model is in evaluation mode, on its device. The results by name are the same in every process.
    """
    state = PartialState()
    results = {}
    for name, dataset in datasets.items():
        share = range(state.process_index, len(dataset), state.num_processes)
        predicted: list[tuple[int, int]] = []
        for indices, images in evaluation_batches(config, dataset, share):
            with evaluation_precision(config.training.mixed_precision):
                classes = model.classify(images.to(state.device)).argmax(dim=1)
            predicted += zip(indices, classes.tolist(), strict=True)
        predictions = dict(gather_object(predicted))
        assert dataset.labels is not None
        results[name] = evaluate_predictions(
            dataset.name, dataset.labels, [predictions[k] for k in range(len(dataset))], dataset.classes
        )
    if state.is_main_process:
        RESULTS.write(config.output, config_hash(config), results)
    return results


def show_results(config: ClassificationConfig) -> None:
    """Print the tables of the results in the output folder, in the main process."""
    if config.validation and PartialState().is_main_process:
        for table in RESULTS.tables(config.output):
            table.show()
