"""The batches that a classifier is trained on, as a function of the step, and those that it is evaluated on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gh_downstream.classification.config import ClassificationConfig
from gh_downstream.classification.data import ClassificationDataset, Transform, build_transform
from gh_downstream.training import batch_samples, derive_seed, process_state, sample_generator, warn_of_repeats


@dataclass(frozen=True)
class StepBatches:
    """The batch of each step, as a pure function of the step: arguments of a method's training forward.

    Args:
        source: Labelled images.
        target: Images of the other domain; None for the source alone.
        transform: What is done to an image.
        batch_size: Source images in each step, of all ranks together, and as many of the target.
        steps: Steps of the training, for its progress.
        seed: Seed of the order and of the augmentation.
    """

    source: ClassificationDataset
    target: ClassificationDataset | None
    transform: Transform
    batch_size: int
    steps: int
    seed: int

    def __post_init__(self) -> None:
        warn_of_repeats("batch_size", self.batch_size, {name: len(dataset) for name, dataset in self._datasets()})

    def __call__(self, step: int, rank: int, ranks: int) -> dict[str, Any]:
        """Return the share of a rank of the batch of a step, counted from 0."""
        batch: dict[str, Any] = {"progress": step / self.steps}
        files: list[str] = []
        for name, dataset in self._datasets():
            seed = derive_seed(self.seed, name)
            samples = batch_samples(step, len(dataset), self.batch_size, seed, rank, ranks)
            images = (
                dataset.tensor(index, self.transform, True, sample_generator(seed, step, position))
                for position, index in samples
            )
            batch[f"{name}_images"] = torch.stack([*images])
            if name == "source":
                assert dataset.labels is not None
                batch["source_labels"] = torch.tensor([dataset.labels[index] for _, index in samples])
            files += [dataset.file_name(index) for _, index in samples]
        return batch | {"file_names": files}

    def _datasets(self) -> list[tuple[str, ClassificationDataset]]:
        domains = {"source": self.source, "target": self.target}
        return [(name, dataset) for name, dataset in domains.items() if dataset is not None]


def evaluation_batches(
    config: ClassificationConfig, dataset: ClassificationDataset, indices: Sequence[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """The images of some indices as the backbone takes them, with these indices."""
    read = partial(_read, dataset, build_transform(config.transform, config.crop))
    workers, pinned = config.training.loaders, process_state().device.type == "cuda"
    size = config.evaluation_batch_size
    for batch in DataLoader(cast(Any, indices), size, num_workers=workers, collate_fn=read, pin_memory=pinned):
        if isinstance(batch, Exception):
            raise batch  # here and not in a worker, so that its message stays one line
        yield batch


def _read(
    dataset: ClassificationDataset, transform: Transform, indices: list[int]
) -> tuple[list[int], Tensor] | Exception:
    try:
        return indices, torch.stack([dataset.tensor(index, transform, False) for index in indices])
    except (OSError, ValueError) as error:
        return error
