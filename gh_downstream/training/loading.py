"""The batches of a training, made in worker processes, each a function of its step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Dataset

from gh_downstream.training.config import TrainingConfig
from gh_downstream.training.sampling import derive_seed

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
        num_workers=config.workers,
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
