"""Train and evaluate a dual encoder from one configuration."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, cast

from accelerate import PartialState
from accelerate.utils import gather_object, set_seed
from torch import nn

from gh_downstream.data.images import unreadable_images
from gh_downstream.retrieval.batches import StepBatches
from gh_downstream.retrieval.config import RetrievalConfig
from gh_downstream.retrieval.data import RetrievalDataset, load_dataset
from gh_downstream.retrieval.encoders import DualEncoder, add_lora, build_encoder
from gh_downstream.retrieval.encoding import evaluate_model
from gh_downstream.retrieval.evaluation import RESULTS, RetrievalResult
from gh_downstream.retrieval.model import RetrievalModel
from gh_downstream.retrieval.skipping import SkippedImagesCallback
from gh_downstream.training import (
    Trainer,
    build_optimizer,
    config_hash,
    load_all_weights,
    parameter_groups,
    process_state,
)

logger = logging.getLogger(__name__)


def build_model(config: RetrievalConfig) -> RetrievalModel:
    """Build the model of a configuration, its initial weights a function of ``training.seed``.

    Raises:
        ValueError: An encoder, an option or a pattern is unknown, or a tower has no checkpointing.
        FileNotFoundError: The weights that are asked for are not there.
        ImportError: The library of the encoder, or peft for ``lora``, is not installed.
    """
    set_seed(config.training.seed)
    settings = config.harmonization
    # One of the two words, which the configuration has checked.
    init = cast(Literal["pretrained", "random"], config.init)
    encoder = build_encoder(config.encoder, init=init, **config.encoder_options)
    if config.checkpointing:
        encoder.checkpoint_activations()
    for name in _matching(encoder, config.freeze, "freeze"):
        encoder.get_parameter(name).requires_grad_(False)
    if config.lora is not None:
        add_lora(encoder, config.lora)
        for name in _matching(encoder, config.lora.train, "lora.train"):
            encoder.get_parameter(name).requires_grad_(True)
    return RetrievalModel(
        encoder,
        config.task,
        config.alignment,
        config.micro_batch,
        settings.build_weighting() if settings.at_features else None,
    )


def build_trainer(config: RetrievalConfig, check: bool = False) -> Trainer:
    """Read the data and build everything that a training needs.

    Args:
        config: The configuration.
        check: Decode every image, and stop where one cannot be read, whatever ``max_skipped`` allows.

    Raises:
        ValueError: The data or the model do not fit the configuration, or an image is missing or damaged.
    """
    source, target = load_training_data(config)
    validation = load_validation(config)
    model = build_model(config)
    batches = StepBatches(source, target, model.encoder, config.batch_size, config.training.seed, config.max_skipped)

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, RetrievalModel)
        results = evaluate_model(model.encoder, validation, config.training.workers, max_skipped=config.max_skipped)
        if PartialState().is_main_process:
            RESULTS.write(config.output, config_hash(config), results)
        return {f"{name}/{key}": value for name, result in results.items() for key, value in result.metrics.items()}

    trainer = Trainer(
        config,
        model,
        build_optimizer(config.optimizer, parameter_groups(model, config.optimizer, config.learning_rates)),
        batches,
        evaluate if validation else None,
        [SkippedImagesCallback(batches.skippable())],
    )
    if check:
        check_images([source, *([] if target is None else [target]), *validation.values()])
    return trainer


def check_images(datasets: Iterable[RetrievalDataset]) -> None:
    """Decode every image of data sets; all processes together, each a part.

    Raises:
        ValueError: An image is missing or not a whole image; the message has a line for each of them.
    """
    images = list(dict.fromkeys(image for dataset in datasets for image in dataset.images))
    state = PartialState()
    faults = gather_object(unreadable_images(images[state.process_index :: state.num_processes]))
    if faults:
        heading = f"{len(faults)} of {len(images)} images cannot be read; repair them, or remove them from the data:"
        raise ValueError("\n".join([heading, *faults]))
    if state.is_main_process:
        logger.info("all %d images can be read", len(images))


def load_training_data(config: RetrievalConfig) -> tuple[RetrievalDataset, RetrievalDataset | None]:
    """Read the source, and the target if a term of the alignment needs it.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: The data cannot be read, or lack what the task or the alignment needs.
    """
    source = load_dataset(config.source)
    if not source.images or not source.texts:
        raise ValueError(f"source {config.source.path}: training needs images with captions")
    of_target = {name: term for name, term in config.terms.items() if name not in ("distillation", "consistency")}
    if not of_target:
        return source, None
    target = None if config.target is None else load_dataset(config.target)
    for name, term in of_target.items():
        for side in term.sides:
            # The term would be left out without a word.
            if target is None or not {"image": target.images, "text": target.texts}[side]:
                raise ValueError(
                    f"alignment.{name} is on {side} features, but target has no {side}s: give them in target"
                )
    return source, target


def load_validation(config: RetrievalConfig) -> dict[str, RetrievalDataset]:
    """Read the validation sets of a configuration by name.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: The data cannot be read, or are images alone or captions alone, of which there is no recall.
    """
    validation = {name: load_dataset(data) for name, data in config.validation.items()}
    for name, dataset in validation.items():
        if not dataset.images or not dataset.texts:
            raise ValueError(f"validation.{name} {dataset.name}: recall needs images with captions")
    return validation


def evaluate_checkpoint(config: RetrievalConfig, checkpoint: str | Path | None) -> dict[str, RetrievalResult]:
    """Evaluate the weights in a checkpoint, or the encoder as it is built, on the validation sets.

    Args:
        config: The configuration.
        checkpoint: ``last.pt``, ``best.pt`` or a state dict; None for the encoder before training (zero-shot).

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint or the data do not fit, or nothing is to be evaluated.
    """
    if not config.validation:
        raise ValueError("the configuration names no validation set to evaluate on")
    state = process_state()
    model = build_model(config)
    if checkpoint is not None:
        load_all_weights(model, Path(checkpoint), "encoder.")
    validation = load_validation(config)
    encoder = model.to(state.device).eval().encoder
    results = evaluate_model(encoder, validation, config.training.workers, max_skipped=config.max_skipped)
    if state.is_main_process:
        RESULTS.write(config.output, config_hash(config), results)
    return results


def load_encoder(config: RetrievalConfig, checkpoint: str | Path) -> DualEncoder:
    """Return the encoder of a checkpoint, on the CPU, in evaluation mode.

    Args:
        config: The configuration of the training.
        checkpoint: ``last.pt``, ``best.pt`` or a state dict.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint does not fit.
    """
    model = build_model(config)
    load_all_weights(model, Path(checkpoint), "encoder.")
    model.clamp_logit_scale()
    return model.eval().encoder


def export_encoder(config: RetrievalConfig, checkpoint: str | Path, folder: str | Path) -> None:
    """Write the encoder of a checkpoint as the library that it comes from reads it.

    Args:
        config: The configuration of the training.
        checkpoint: ``last.pt``, ``best.pt`` or a state dict.
        folder: Folder to write to; see :meth:`~gh_downstream.retrieval.encoders.DualEncoder.export`.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint does not fit.
    """
    load_encoder(config, checkpoint).export(Path(folder))


def _matching(model: nn.Module, patterns: Sequence[str], key: str) -> list[str]:
    """Names of the parameters that fit a pattern; each pattern has to fit one."""
    names = [name for name, _ in model.named_parameters()]
    found = []
    for pattern in patterns:
        fitting = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not fitting:
            raise ValueError(f"{key}: {pattern!r} fits no parameter; there are {', '.join(names[:8])}, ...")
        found += fitting
    return found


def show_results(config: RetrievalConfig) -> None:
    """Print the tables of the results in the output folder, in the main process."""
    if config.validation and PartialState().is_main_process:
        for table in RESULTS.tables(config.output):
            table.show()
