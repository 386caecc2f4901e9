"""The batches of a training, made in worker processes, each a function of its step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Dataset

from gh_downstream.training.sampling import derive_seed

Batches = Callable[[int, int, int], dict[str, Any]]
"""The batch of ``(step, rank, ranks)``, steps from 0, as keyword arguments of the model."""


def step_loader(
    batches: Batches, steps: range, seed: int, workers: int, rank: int, ranks: int, pin_memory: bool
) -> DataLoader[dict[str, Any] | Exception]:
    """Return a loader of the batches of steps; in the place of one that cannot be made comes what went wrong.

    Args:
        batches: Makes them; the global random generators are seeded from step and rank before each call.
        steps: The steps, from 0.
        seed: Seed of the run.
        workers: Processes that make them; 0 makes them in this one.
        rank: Index of this process.
        ranks: Number of processes.
        pin_memory: Copy them where a GPU takes them from.
    """
    return DataLoader(
        _Steps(batches, seed, rank, ranks),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
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
