"""The batches as a pure function of the step: nothing to save, and the same on any number of workers and ranks."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gh_downstream.training.config import TrainingConfig

logger = logging.getLogger(__name__)


def derive_seed(*parts: int | str) -> int:
    """Mix what a seed is for into a seed in ``[0, 2**32)``: anything else, or another order, gives an unrelated one.

    The parts are the seed of the run, and name of the stream, step, rank, position in the batch, ... 32 bits are what
    NumPy takes and what torch's CPU generator uses.
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")


def sample_generator(seed: int, step: int, position: int) -> torch.Generator:
    """Return the generator for the augmentations of one sample, by its position in the batch of all ranks."""
    return torch.Generator().manual_seed(derive_seed(seed, "sample", step, position))


def batch_samples(
    step: int, length: int, batch_size: int, seed: int, rank: int = 0, ranks: int = 1
) -> list[tuple[int, int]]:
    """Choose what a rank trains on at a step, in the endless sequence of one permutation of the data after another.

    Each sample comes once an epoch; a batch may reach into the next epoch, so that ``length < batch_size`` works, of
    which :func:`warn_of_repeats` warns.

    Args:
        step: Step, from 0.
        length: Number of samples.
        batch_size: Samples of all ranks together.
        seed: Seed of the order; give the streams of a run (source, target) different ones.
        rank: Index of this process.
        ranks: Number of processes; together they get the batch of a single process.

    Returns:
        ``(position, index)`` for each sample of the rank: its position in the batch of all ranks, for
        :func:`sample_generator`, and its index in the data.

    Raises:
        ValueError: There is no sample, or the batch cannot be shared equally.
    """
    if length < 1:
        raise ValueError("there is no sample to train on")
    if batch_size < 1 or batch_size % ranks:
        raise ValueError(f"a batch of {batch_size} cannot be shared equally by {ranks} process(es)")
    share = batch_size // ranks
    samples = []
    for position in range(rank * share, (rank + 1) * share):
        epoch, place = divmod(step * batch_size + position, length)
        samples.append((position, int(_permutation(length, seed, epoch)[place])))
    return samples


def warn_of_repeats(key: str, batch_size: int, lengths: Mapping[str, int]) -> None:
    """Warn, in the first process, where a batch has samples more than once: there are fewer than it takes.

    Args:
        key: Sets the size.
        batch_size: Samples of all ranks together.
        lengths: Number of samples, by what they are of.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
        return
    for name, length in lengths.items():
        if length < batch_size:
            logger.warning(
                "%s=%d is more than the %d samples of the %s: a batch has some of them more than once",
                *(key, batch_size, length, name),
            )


@lru_cache(maxsize=4)  # Each worker has its own: the three streams of a step, and the next epoch of one.
def _permutation(length: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(length, generator=generator, dtype=torch.int32 if length < 2**31 else torch.int64)


Batches = Callable[[int, int, int], dict[str, Any]]
"""The batch of ``(step, rank, ranks)``, steps from 0, as keyword arguments of the model."""


def step_loader(batches: Batches, step: int, config: TrainingConfig, accelerator: Accelerator) -> DataLoader:
    """Return a loader of the batches from a step on; in the place of one that cannot be made comes what went wrong.

    The global random generators are seeded from step and rank before each batch is made.
    """
    return DataLoader(
        _Steps(batches, config.seed, accelerator.process_index, accelerator.num_processes),
        batch_size=None,
        sampler=range(step, config.steps),
        num_workers=config.loaders,
        collate_fn=_unchanged,
        pin_memory=accelerator.device.type == "cuda",
    )


class _Steps(Dataset):
    """The batch of each step; workers take whole batches."""

    def __init__(self, batches: Batches, seed: int, rank: int, ranks: int) -> None:
        self.batches, self.seed, self.rank, self.ranks = batches, seed, rank, ranks

    def __getitem__(self, step: int) -> dict[str, Any] | Exception:
        set_seed(derive_seed(self.seed, "data", step, self.rank))
        try:
            return self.batches(step, self.rank, self.ranks)
        except (OSError, ValueError) as error:
            return error  # Raised in the main process, so that its message stays one line.


def _unchanged(batch: Any) -> Any:
    return batch
