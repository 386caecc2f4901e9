"""The collectives that harmonization needs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes in the default group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_mean(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor, in place, by its mean over the ranks; nothing to do in a single process.

    Args:
        tensors: Tensors of any shapes, the same on every rank and in the same order.
    """
    ranks = world_size()
    if ranks == 1:
        return
    # All under way before the first is waited for, so that their latencies overlap.
    pending = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    for work, tensor in zip(pending, tensors, strict=True):
        work.wait()
        tensor.div_(ranks)


def from_rank_zero(weights: Tensor) -> Tensor:
    """The weights of rank 0, on every rank: a weighting may be random, or round otherwise on other hardware."""
    if world_size() > 1:
        dist.broadcast(weights, src=0)
    return weights


class Agreement:
    """What the ranks tell each other on the host before a step: an error of one is an error of all, and no rank waits.

    It needs no word of the device, so that the device need not be waited for.
    """

    def __init__(self) -> None:
        self._met = False
        self._group: dist.ProcessGroup | None = None  # The default group, where that is on the host.

    def reach(
        self, settings: Callable[[], Mapping[str, object]], error: Exception | None, flags: Sequence[bool]
    ) -> list[bool]:
        """Return for each flag whether it is set on some rank.

        Args:
            settings: Returns what has to be the same on all ranks, compared at the first call.
            error: What went wrong on this rank.
            flags: As many on each rank.

        Raises:
            RuntimeError: Something went wrong on another rank, or a rank is gone.
            ValueError: The settings differ.
            Exception: ``error``.
        """
        if not self._met:
            self._met = True
            if dist.get_backend() != "gloo":
                self._group = dist.new_group(backend="gloo")  # type: ignore[assignment]
            self._check_settings(settings())
        told = torch.tensor([error is not None, *flags], dtype=torch.int64)
        try:
            dist.all_reduce(told, dist.ReduceOp.MAX, self._group)
        except RuntimeError as gone:
            raise RuntimeError("a rank ended before this step; what it said itself tells why") from gone
        if told[0]:
            what = None if error is None else f"{type(error).__name__}: {error}"
            rank, message = next((rank, what) for rank, what in enumerate(self._gathered(what)) if what is not None)
            raise error or RuntimeError(f"on rank {rank}: {message}")
        return [bool(flag) for flag in told[1:]]

    def _check_settings(self, settings: Mapping[str, object]) -> None:
        first, *others = self._gathered(dict(settings))
        for rank, other in enumerate(others, start=1):
            for name, value in first.items():
                if other[name] != value:
                    raise ValueError(f"the ranks differ in {name}: rank 0 has {value}, rank {rank} has {other[name]}")

    def _gathered(self, value: object) -> list[Any]:
        values: list[Any] = [None] * world_size()
        dist.all_gather_object(values, value, self._group)
        return values
