"""Train and evaluate a dual encoder from one configuration."""

from __future__ import annotations

import fnmatch
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object, set_seed
from torch import Tensor, nn

from gh_downstream.datasets.images import StoredImage, unreadable_images
from gh_downstream.datasets.skipped import SkippedImages
from gh_downstream.harmonization import build_weighting
from gh_downstream.reporting import Table, write_atomically
from gh_downstream.retrieval.config import RetrievalConfig
from gh_downstream.retrieval.data import RetrievalDataset, load_dataset
from gh_downstream.retrieval.encoders import DualEncoder, add_lora, build_encoder
from gh_downstream.retrieval.evaluation import RetrievalResult, evaluate_retrieval, results_table
from gh_downstream.retrieval.model import RetrievalModel
from gh_downstream.retrieval.reading import image_batches, image_or_fault
from gh_downstream.training import (
    Trainer,
    batch_samples,
    build_optimizer,
    config_hash,
    derive_seed,
    load_weights,
    process_state,
    sample_generator,
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
    at_features = settings.method != "none" and settings.measure == "features"
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
        build_weighting(settings.method, settings.lam, settings.guard, settings.max_weight) if at_features else None,
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
            write_results(config, results)
        return {f"{name}/{key}": value for name, result in results.items() for key, value in result.metrics.items()}

    trainer = Trainer(
        config,
        model,
        build_optimizer(config.optimizer, parameter_groups(model, config)),
        batches,
        evaluate if validation else None,
        batches.skippable(),
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
    """Read the source, and the target if there is one.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: The data cannot be read, or lack what the task or the alignment needs.
    """
    source = load_dataset(config.source)
    if not source.images or not source.texts:
        raise ValueError(f"source {config.source.path}: training needs images with captions")
    target = None if config.target is None else load_dataset(config.target)
    _check_target(config, target)
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
        load_weights(model, Path(checkpoint))
    validation = load_validation(config)
    encoder = model.to(state.device).eval().encoder
    results = evaluate_model(encoder, validation, config.training.workers, max_skipped=config.max_skipped)
    if state.is_main_process:
        write_results(config, results)
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
    load_weights(model, Path(checkpoint))
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


class StepBatches:
    """The batch of each step, as a pure function of the step: arguments of the model's training forward.

    Args:
        source: Images with captions; of several captions of an image each step draws one.
        target: Images, captions or both of the other domain; None for the source alone.
        encoder: Prepares images and captions.
        batch_size: Source images in each step, of all ranks together; as many images, and captions, of the target.
        seed: Seed of the order, the captions and the augmentation.
        max_skipped: Share of the images of source and target that may be unreadable. Others take their place, as a
            function of the step and the place in the batch; what is wrong with them is in the batch's entry
            ``skipped``.
    """

    def __init__(
        self,
        source: RetrievalDataset,
        target: RetrievalDataset | None,
        encoder: DualEncoder,
        batch_size: int,
        seed: int,
        max_skipped: float = 0.0,
    ) -> None:
        self.source, self.target = source, target
        self.encoder = encoder
        self.batch_size = batch_size
        self.seed = seed
        self.max_skipped = max_skipped
        self._captions: list[list[int]] = [[] for _ in source.images]
        for text, image in enumerate(source.image_of_text):
            self._captions[image].append(text)
        if bare := [path for path, texts in zip(source.images, self._captions, strict=True) if not texts]:
            raise ValueError(f"{source.name}: {bare[0]} has no caption ({len(bare)} such images)")

    def __call__(self, step: int, rank: int, ranks: int) -> dict[str, Any]:
        """Return the share of a rank of the batch of a step, counted from 0."""
        skipped = self.skippable()
        samples = self._samples("source", len(self.source.images), step, rank, ranks)
        samples, pixels = self._read("source", self.source.images, samples, step, skipped)
        texts = [self._draw(step, *sample) for sample in samples]
        groups = torch.tensor([index for _, index in samples])
        batch: dict[str, Any] = {
            "source_images": pixels,
            "source_tokens": self.encoder.tokenize([self.source.texts[k] for k in texts]),
            "source_groups": groups,
            "source_text_groups": groups,
        }
        files = [str(self.source.images[k]) for _, k in samples]
        if self.target is not None and self.target.images:
            samples = self._samples("target images", len(self.target.images), step, rank, ranks)
            samples, batch["target_images"] = self._read("target", self.target.images, samples, step, skipped)
            files += [str(self.target.images[k]) for _, k in samples]
        if self.target is not None and self.target.texts:
            found = [k for _, k in self._samples("target texts", len(self.target.texts), step, rank, ranks)]
            batch["target_tokens"] = self.encoder.tokenize([self.target.texts[k] for k in found])
        return batch | {"file_names": files} | ({"skipped": skipped.found} if skipped.found else {})

    def skippable(self) -> SkippedImages:
        """Return a count of what is skipped of source and target, at zero."""
        datasets = {"source": self.source} | ({} if self.target is None else {"target": self.target})
        return SkippedImages({name: len(dataset.images) for name, dataset in datasets.items()}, self.max_skipped)

    def _samples(self, stream: str, length: int, step: int, rank: int, ranks: int) -> list[tuple[int, int]]:
        return batch_samples(step, length, self.batch_size, derive_seed(self.seed, stream), rank, ranks)

    def _draw(self, step: int, position: int, image: int) -> int:
        """One of the captions of an image."""
        captions = self._captions[image]
        generator = sample_generator(derive_seed(self.seed, "captions"), step, position)
        return captions[int(torch.randint(len(captions), (), generator=generator))]

    def _read(
        self,
        name: str,
        images: Sequence[str | StoredImage],
        samples: Sequence[tuple[int, int]],
        step: int,
        skipped: SkippedImages,
    ) -> tuple[list[tuple[int, int]], Tensor]:
        """The samples, with another index where the image cannot be read, and the pixels of all."""
        read, pixels = [], []
        for position, index in samples:
            generator = sample_generator(derive_seed(self.seed, name, "replacements"), step, position)
            while isinstance(image := image_or_fault(images[index]), str):
                skipped.add(name, str(images[index]), image)
                index = int(torch.randint(len(images), (), generator=generator))
            read.append((position, index))
            pixels.append(self.encoder.preprocess(image, True))
        return read, torch.stack(pixels)


@torch.no_grad()
def evaluate_model(
    encoder: DualEncoder,
    datasets: Mapping[str, RetrievalDataset],
    workers: int = 0,
    batch_size: int = 128,
    max_skipped: float = 0.0,
) -> dict[str, RetrievalResult]:
    """Measure the recall on data sets; the processes, which all call this, share the encoding and the ranking.

    Each encodes whole batches of those that a single process would encode, so the results do not depend on the number
    of processes. Features are computed in the precision of the weights, whatever ``training.mixed_precision`` is: the
    results are those of the model as it is exported.

    Args:
        encoder: In evaluation mode, on its device.
        datasets: Images with captions by name.
        workers: Processes that read images.
        batch_size: Images, or captions, that are encoded at a time.
        max_skipped: Share of the images of a data set that may be unreadable: they are left out with their captions,
            and named in the log.

    Returns:
        The results by name, the same in every process.

    Raises:
        ValueError: More images than that cannot be read.
    """
    results = {}
    for name, dataset in datasets.items():
        images, faults = _encode_images(encoder, dataset.images, workers, batch_size)
        if unread := _skipped(name, dataset, faults, max_skipped):
            images = images[[index for index in range(len(images)) if index not in unread]]
            dataset = dataset.without(unread)
        results[name] = evaluate_retrieval(
            images,
            _encode_texts(encoder, dataset.texts, batch_size),
            torch.tensor(dataset.image_of_text, device=images.device),
            name,
            distributed=PartialState().num_processes > 1,
        )
    return results


def _encode_images(
    encoder: DualEncoder, images: Sequence[str | StoredImage], workers: int, batch_size: int
) -> tuple[Tensor, list[tuple[int, str]]]:
    """Features of all images, ``[N, D]``, and what is wrong with those that cannot be read, by index; theirs are 0."""
    rows = _share(len(images), batch_size)
    features = torch.zeros(len(rows), encoder.embed_dim, device=encoder.logit_scale.device)
    faults = []
    own = images[rows.start : rows.stop]
    for read, pixels, unread in image_batches(encoder, own, workers, batch_size):
        faults += [(rows.start + index, fault) for index, fault in unread.items()]
        if read:
            features[read] = encoder.encode_image(pixels.to(features.device)).float()
    return gather(features)[: len(images)], gather_object(faults)


def _encode_texts(encoder: DualEncoder, texts: Sequence[str], batch_size: int) -> Tensor:
    """Features of all captions, ``[M, D]``."""
    rows = _share(len(texts), batch_size)
    features = torch.zeros(len(rows), encoder.embed_dim, device=encoder.logit_scale.device)
    for first in range(len(texts))[rows.start : rows.stop : batch_size]:
        tokens = encoder.tokenize(texts[first : first + batch_size])
        features[first - rows.start :][: len(tokens)] = encoder.encode_text(tokens.to(features.device))
    return gather(features)[: len(texts)]


def _share(length: int, batch_size: int) -> range:
    """Rows that this process encodes, as many in each; those that the last ones have too many come after all data."""
    state = PartialState()
    rows = batch_size * math.ceil(length / (batch_size * state.num_processes))
    return range(state.process_index * rows, (state.process_index + 1) * rows)


def _skipped(name: str, dataset: RetrievalDataset, faults: Iterable[tuple[int, str]], max_skipped: float) -> set[int]:
    """Indices of the images that are left out, named in the log, if they are not too many."""
    key = f"validation.{name}"
    skipped = SkippedImages({key: len(dataset.images)}, max_skipped)
    unread = set()
    for index, fault in faults:
        skipped.add(key, str(dataset.images[index]), fault)
        unread.add(index)
        if PartialState().is_main_process:
            logger.warning("%s: left out with its captions: %s", key, fault)
    return unread


def parameter_groups(model: nn.Module, config: RetrievalConfig) -> list[dict[str, Any]]:
    """Parameters that are trained, by the pattern of their learning rate, which names the group, and by decay.

    Biases, gains, scales and other vectors do not decay, as is usual for transformers.

    Raises:
        ValueError: A pattern of ``learning_rates`` fits no parameter.
    """
    for pattern in config.learning_rates:
        _matching(model, [pattern], "learning_rates")
    factors = config.learning_rates | {"*": config.learning_rates.get("*", 1.0)}
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            pattern = next(pattern for pattern in factors if fnmatch.fnmatchcase(name, pattern))
            groups.setdefault((pattern, parameter.ndim > 1), []).append(parameter)
    settings = config.optimizer
    return [
        {
            "params": found,
            "lr": settings.lr * factors[pattern],
            "weight_decay": settings.weight_decay if decays else 0.0,
            "name": pattern,
        }
        # The main rate first: it is what the log calls the learning rate.
        for (pattern, decays), found in sorted(groups.items(), key=lambda group: group[0][0] != "*")
    ]


def _check_target(config: RetrievalConfig, target: RetrievalDataset | None) -> None:
    """A term of the alignment without what it aligns would be left out without a word."""
    for name, term in config.alignment.items():
        if name in ("distillation", "consistency"):  # on the source
            continue
        for side in term.sides:
            if target is None or not {"image": target.images, "text": target.texts}[side]:
                raise ValueError(
                    f"alignment.{name} is on {side} features, but target has no {side}s: give them in target"
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


def write_results(config: RetrievalConfig, results: Mapping[str, RetrievalResult]) -> None:
    """Write ``results.json`` and, with the same as a table for reading, ``results.md`` into the output folder."""
    output = Path(config.output)
    content = {
        "configuration": config_hash(config),
        "results": {name: result.as_dict() for name, result in results.items()},
    }
    write_atomically(output / "results.json", json.dumps(content, indent=2))
    result_table(output).write_markdown(output / "results.md")


def read_results(output: str | Path) -> tuple[dict[str, RetrievalResult], str]:
    """Return the results in an output folder by the name of the validation set, and the hash of the configuration."""
    content = json.loads((Path(output) / "results.json").read_text())
    results = {name: RetrievalResult.from_dict(result) for name, result in content["results"].items()}
    return results, content["configuration"]


def result_table(output: str | Path) -> Table:
    """Return a table with a row for each validation set from the results in an output folder."""
    results, configuration = read_results(output)
    return results_table(list(results.values()), config_hash=configuration, title=f"Recall of {Path(output).name}")


def show_results(config: RetrievalConfig) -> None:
    """Print the table of the results in the output folder, in the main process."""
    if config.validation and PartialState().is_main_process:
        result_table(config.output).show()
