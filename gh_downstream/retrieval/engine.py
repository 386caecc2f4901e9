"""Train and evaluate a dual encoder from one configuration."""

import fnmatch
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, cast

from accelerate import PartialState
from accelerate.utils import set_seed
from torch import nn

from gh_downstream.data.images import check_readable, unreadable_images
from gh_downstream.data.skipped import SkippedImages, listed
from gh_downstream.files import write_atomically
from gh_downstream.harmonization.checks import check_numbers
from gh_downstream.retrieval.batches import SkippedImagesCallback, StepBatches
from gh_downstream.retrieval.config import RetrievalConfig
from gh_downstream.retrieval.data import DataConfig, RetrievalDataset, load_dataset
from gh_downstream.retrieval.encoders import DualEncoder, add_lora, build_encoder
from gh_downstream.retrieval.encoding import evaluate_model
from gh_downstream.retrieval.evaluation import RESULTS, RetrievalResult
from gh_downstream.retrieval.model import RetrievalModel
from gh_downstream.retrieval.wise_ft import interpolate, starting_weights
from gh_downstream.training import (
    Trainer,
    build_optimizer,
    config_hash,
    evaluation_precision,
    load_all_weights,
    parameter_groups,
    process_state,
    shared_map,
)
from gh_downstream.training.export import write_card

logger = logging.getLogger(__name__)

_COUNTED = 10_000  # captions of a data set whose length is looked at


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
        config.source_share,
        settings.build_weighting() if settings.at_features else None,
    )


def build_trainer(config: RetrievalConfig) -> Trainer:
    """Read the data and build everything that a training needs.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: The data cannot be read, lack what the task, the alignment or the recall needs, or do not fit the
            model; or more images are missing, or no images, than ``max_skipped`` allows.
    """
    datasets = _load_all(config)
    for name, dataset in datasets.items():
        skipped = SkippedImages({name: len(dataset.images)}, config.max_skipped)
        length = math.ceil(len(dataset.images) / process_state().num_processes) or 1
        parts = [dataset.images[k : k + length] for k in range(0, len(dataset.images), length)]
        faults = chain.from_iterable(shared_map(partial(unreadable_images, pixels=False), parts))
        skipped.found[name] = {fault: fault for fault in faults}
        skipped.check(name)
    source, target = datasets["source"], datasets.get("target")
    validation = {name: datasets[f"validation.{name}"] for name in config.validation}
    model = build_model(config)
    _tell_cut(model.encoder, datasets)
    settings = config.batch_size, config.training.seed, config.max_skipped, config.augmentation
    batches = StepBatches(source, target, model.encoder, *settings)

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, RetrievalModel)
        results = _evaluate(config, model.encoder, validation)
        return {f"{name}/{key}": value for name, result in results.items() for key, value in result.metrics.items()}

    return Trainer(
        config,
        model,
        build_optimizer(config.optimizer, parameter_groups(model, config.optimizer, config.learning_rates)),
        batches,
        evaluate if validation else None,
        [SkippedImagesCallback(batches.skippable())],
    )


def check_data(config: RetrievalConfig) -> None:
    """Read all data and decode every image of them; nothing is trained.

    Raises:
        FileNotFoundError, ValueError: As :func:`build_trainer`, but for the model, and whatever ``max_skipped`` allows.
    """
    count = check_readable(image for dataset in _load_all(config).values() for image in dataset.images)
    logger.info("all %d images can be read", count)


def evaluate_checkpoint(
    config: RetrievalConfig, checkpoint: str | Path | None, wise_ft: float = 1.0, ranks: Path | None = None
) -> dict[str, RetrievalResult]:
    """Evaluate the weights in a checkpoint, or the encoder as it is built, on the validation sets.

    Args:
        config: The configuration.
        checkpoint: ``last.pt``, ``best.pt`` or a state dict; None for the encoder before training (zero-shot).
        wise_ft: As in :func:`load_encoder`.
        ranks: File for :func:`~gh_downstream.retrieval.queries.rank_lines` of all queries; None for none.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint or the data do not fit, or nothing is to be evaluated; or as :func:`load_encoder`.
    """
    if checkpoint is None and wise_ft != 1:
        raise ValueError("wise_ft goes from a checkpoint back towards the starting model: give --checkpoint")
    if ranks is not None and ranks.is_dir():
        raise ValueError(f"{ranks} is a folder: give the name of a file for the ranks")
    if not config.validation:
        raise ValueError("the configuration names no validation set to evaluate on")
    device = process_state().device
    encoder = build_model(config).eval().encoder if checkpoint is None else load_encoder(config, checkpoint, wise_ft)
    validation = _load_validation(config)
    _tell_cut(encoder, validation)
    lines: list[str] | None = [] if ranks is not None and process_state().is_main_process else None
    results = _evaluate(config, encoder.to(device), validation, lines)
    if ranks is not None and lines is not None:
        write_atomically(ranks, "".join(lines))
    return results


def load_encoder(config: RetrievalConfig, checkpoint: str | Path, wise_ft: float = 1.0) -> DualEncoder:
    """Return the encoder of a checkpoint, ``last.pt``, ``best.pt`` or a state dict, on the CPU, in evaluation mode.

    Args:
        config: The configuration of the training.
        checkpoint: The file.
        wise_ft: Share of the checkpoint's weights, from 0 to 1; the others are those that the training started from,
            see :mod:`~gh_downstream.retrieval.wise_ft`.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint does not fit the configuration; or ``wise_ft`` is out of its range, or below 1 where
            the training started from random weights.
    """
    check_numbers({"wise_ft": wise_ft}, wise_ft="one, >= 0, <= 1")
    model = build_model(config)
    start = starting_weights(config, model) if wise_ft < 1 else {}
    load_all_weights(model, Path(checkpoint), "encoder.")
    model.clamp_logit_scale()
    if start:
        interpolate(model.encoder, start, wise_ft)
    return model.eval().encoder


def export_encoder(
    config: RetrievalConfig,
    checkpoint: str | Path,
    folder: str | Path,
    repository: str | None = None,
    *,
    wise_ft: float = 1.0,
) -> None:
    """Write the encoder of a checkpoint to a folder, as the library that it comes from reads it, and a model card.

    See :func:`load_encoder`, :meth:`~gh_downstream.retrieval.encoders.DualEncoder.export` and
    :func:`~gh_downstream.training.export.write_card`.
    """
    encoder, folder = load_encoder(config, checkpoint, wise_ft), Path(folder)
    named = config.encoder if config.init == "pretrained" else f"{config.encoder}, from random weights"
    pipeline = None if encoder.library == "gh_downstream" else "zero-shot-image-classification"
    kinds = "image-text-retrieval", encoder.library, pipeline
    since = "" if wise_ft == 1 else f"interpolated with the start, {wise_ft:g} of the way (WiSE-FT)"
    write_card(folder, config, Path(checkpoint), named, *kinds, encoder.loading(repository), repository, since)
    encoder.export(folder, repository)


def show_results(config: RetrievalConfig) -> None:
    """Print the tables of the results in the output folder, in the main process."""
    if config.validation and PartialState().is_main_process:
        for table in RESULTS.tables(config.output):
            table.show()


def _evaluate(
    config: RetrievalConfig,
    encoder: DualEncoder,
    validation: Mapping[str, RetrievalDataset],
    lines: list[str] | None = None,
) -> dict[str, RetrievalResult]:
    with evaluation_precision(config.training.mixed_precision):
        results = evaluate_model(
            encoder, validation, config.training.loaders, config.evaluation_batch_size, config.max_skipped, lines
        )
    if PartialState().is_main_process:
        RESULTS.write(config.output, config_hash(config), results)
    return results


def _load_all(config: RetrievalConfig) -> dict[str, RetrievalDataset]:
    """Read the data of a training by the keys of the configuration."""
    target = _load_target(config)
    return {
        "source": _load_pairs(config, config.source, "source", "training needs images with captions"),
        **({} if target is None else {"target": target}),
        **{f"validation.{name}": dataset for name, dataset in _load_validation(config).items()},
    }


def _load(config: RetrievalConfig, data: DataConfig, key: str) -> RetrievalDataset:
    """Read data, and say in the log which captions are left out."""
    try:
        dataset = load_dataset(data, config.max_skipped, shared_map)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{key}: {error}") from error
    if dataset.skipped and process_state().is_main_process:
        logger.warning("%s: %d captions left out:\n%s", key, len(dataset.skipped), listed(dataset.skipped))
    return dataset


def _load_pairs(config: RetrievalConfig, data: DataConfig, key: str, need: str) -> RetrievalDataset:
    dataset = _load(config, data, key)
    if not dataset.images or not dataset.texts:
        raise ValueError(f"{key} {dataset.name}: {need}")
    return dataset


def _load_validation(config: RetrievalConfig) -> dict[str, RetrievalDataset]:
    need = "recall needs images with captions; for accuracy on a folder for each class give format=classes"
    return {name: _load_pairs(config, data, f"validation.{name}", need) for name, data in config.validation.items()}


def _load_target(config: RetrievalConfig) -> RetrievalDataset | None:
    """Read the target if a term of the alignment needs it; the others are on the source."""
    of_target = {name: term for name, term in config.terms.items() if name not in ("distillation", "consistency")}
    if not of_target:
        return None
    target = None if config.target is None else _load(config, config.target, "target")
    for name, term in of_target.items():
        for side in term.sides:
            # The term would be left out without a word.
            if target is None or not {"image": target.images, "text": target.texts}[side]:
                raise ValueError(
                    f"alignment.{name} is on {side} features, but target has no {side}s: give them in target"
                )
    return target


def _tell_cut(encoder: DualEncoder, datasets: Mapping[str, RetrievalDataset]) -> None:
    """Say in the log how many captions are longer than what the encoder reads; of many, by some from all over them."""
    for name, dataset in datasets.items() if process_state().is_main_process else ():
        texts = dataset.texts[:: math.ceil(len(dataset.texts) / _COUNTED) or 1]
        if texts and (count := encoder.cut(texts)):  # The tokenizers of transformers take no empty list.
            logger.warning(
                "%s: %d of %d captions that were counted are longer than the encoder reads, and are cut",
                name,
                count,
                len(texts),
            )


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
