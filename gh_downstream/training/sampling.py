"""Random order as a pure function of the step: nothing to save, and the same on any number of workers and ranks."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """Mix what a seed is for into a seed in ``[0, 2**32)``: anything else, or another order, gives an unrelated one.

    32 bits are what NumPy takes and what torch's CPU generator uses.

    Args:
        *parts: Seed of the run, and name of the stream, step, rank, position in the batch, ...
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")


def sample_generator(seed: int, step: int, position: int) -> torch.Generator:
    """Return the generator for the augmentations of one sample.

    Args:
        seed: Seed of the run.
        step: Step, from 0.
        position: Position of the sample in the batch of all ranks.
    """
    return torch.Generator().manual_seed(derive_seed(seed, "sample", step, position))


def batch_samples(
    step: int, length: int, batch_size: int, seed: int, rank: int = 0, ranks: int = 1
) -> list[tuple[int, int]]:
    """Choose what a rank trains on at a step, in the endless sequence of one permutation of the data after another.

    Each sample comes once an epoch; a batch may reach into the next epoch, so that ``length < batch_size`` works.

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


@lru_cache(maxsize=8)
def _permutation(length: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(derive_seed(seed, "order", epoch)))
