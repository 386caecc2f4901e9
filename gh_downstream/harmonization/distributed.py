"""The collectives that harmonization needs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

Group: TypeAlias = "dist.ProcessGroup | None"
"""The processes that take part; None is the default group."""

SCATTERING = {"nccl"}
"""Backends whose reduce-scatter moves half of what an all-reduce does; that of gloo moves more than one."""


def check_group(group: object) -> None:
    """Raise a TypeError where something is no process group of this process."""
    if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(
            f"process_group takes the group that this process averages in, such as mesh.get_group('dp'), got {group!r}"
        )


def is_running() -> bool:
    """Whether there is a group of processes, if only of one."""
    return dist.is_available() and dist.is_initialized()


def world_size(group: Group = None) -> int:
    """Number of processes in a group, 1 without one."""
    return dist.get_world_size(group) if is_running() else 1


def ranks_of(group: Group) -> list[int]:
    """The ranks of a group, in the default group."""
    return dist.get_process_group_ranks(group or dist.group.WORLD)


def all_reduce_mean(tensors: Sequence[Tensor], group: Group = None) -> None:
    """Replace each tensor, in place, by its mean over the ranks; nothing to do in a single process.

    Args:
        tensors: Tensors of any shapes, the same on every rank and in the same order.
        group: The ranks.
    """
    if world_size(group) > 1:
        # All under way before the first is waited for, so that their latencies overlap.
        for wait in [begin_mean(tensor, group) for tensor in tensors]:
            wait()


def begin_mean(tensor: Tensor, group: Group, scatter: bool = False) -> Callable[[], None]:
    """Begin to replace a tensor by its mean over the ranks, in place; what is returned waits for that.

    Args:
        tensor: The tensor, of the same shape on every rank.
        group: The ranks.
        scatter: Leave it at its :func:`part`; the tensor is a vector then, whose length the ranks divide.
    """
    averages = _backend(tensor.device, group) == "nccl"
    operation = dist.ReduceOp.AVG if averages else dist.ReduceOp.SUM
    mean = part(tensor, group) if scatter else tensor
    if scatter:
        work = _single("reduce_scatter")(mean, tensor, operation, group, async_op=True)
    else:
        work = dist.all_reduce(tensor, operation, group, async_op=True)

    def wait() -> None:
        work.wait()
        if not averages:
            mean.div_(world_size(group))

    return wait


def part(vector: Tensor, group: Group) -> Tensor:
    """The part of a vector that this rank is to work on, a view: each entry is one rank's."""
    return vector.tensor_split(world_size(group))[dist.get_rank(group)]


def scatters(device: torch.device, group: Group) -> bool:
    """Whether a rank had better get the mean of its :func:`part` alone, and :func:`gather` what the others make."""
    return _backend(device, group) in SCATTERING


def gather(vectors: Sequence[Tensor], group: Group) -> None:
    """Fill vectors, in place, with the :func:`part` of each rank; the ranks divide their lengths."""
    for vector in vectors:
        _single("all_gather")(vector, part(vector, group), group)


def from_rank_zero(weights: Tensor, groups: Sequence[Group]) -> Tensor:
    """The weights of one rank, on every rank: a weighting may be random, or round otherwise on other hardware."""
    for group in groups:
        dist.broadcast(weights, ranks_of(group)[0], group)
    return weights


def _backend(device: torch.device, group: Group) -> str | None:
    """The backend for tensors of a device."""
    return dict(pair.split(":") for pair in dist.get_backend_config(group).split(",")).get(device.type)


def _single(collective: str) -> Callable[..., Any]:
    """A collective of one tensor; torch renames them."""
    older = {"reduce_scatter": "reduce_scatter_tensor", "all_gather": "all_gather_into_tensor"}
    return getattr(dist, f"{collective}_single", None) or getattr(dist, older[collective])


class Agreement:
    """What the ranks tell each other on the host before a step: an error of one is an error of all, and no rank waits.

    It needs no word of the device, so that the device need not be waited for.
    """

    def __init__(self) -> None:
        self._hosts: list[Group] = []  # The groups, or others of the same ranks that are on the host.

    def reach(
        self,
        groups: Sequence[Group],
        settings: Callable[[], Mapping[str, object]],
        error: Exception | None,
        flags: Sequence[bool],
    ) -> list[bool]:
        """Return for each flag whether it is set on some rank.

        Args:
            groups: The ranks that have to agree.
            settings: Returns what has to be the same on all ranks, compared at the first call.
            error: What went wrong on this rank.
            flags: As many on each rank.

        Raises:
            RuntimeError: Something went wrong on another rank, or a rank is gone.
            ValueError: The settings differ.
            Exception: ``error``.
        """
        if not self._hosts:
            self._hosts = [_on_host(group) for group in groups]
            for group in self._hosts:
                _check_settings(_gathered(dict(settings()), group), ranks_of(group))
        told = torch.tensor([error is not None, *flags], dtype=torch.int64)
        try:
            for group in self._hosts:
                dist.all_reduce(told, dist.ReduceOp.MAX, group)
        except RuntimeError as gone:
            raise RuntimeError("a rank ended before this step; what it said itself tells why") from gone
        if told[0]:
            what = None if error is None else f"on rank {dist.get_rank()}: {type(error).__name__}: {error}"
            for group in self._hosts:
                what = next((message for message in _gathered(what, group) if message is not None), None)
            raise error or RuntimeError(what)
        return [bool(flag) for flag in told[1:]]


def _on_host(group: Group) -> Group:
    if _backend(torch.device("cpu"), group) == "gloo":
        return group
    return dist.new_group(ranks_of(group), backend="gloo", use_local_synchronization=True)  # type: ignore[return-value]


def _check_settings(gathered: Sequence[Mapping[str, object]], ranks: Sequence[int]) -> None:
    first, *others = gathered
    for rank, other in zip(ranks[1:], others, strict=True):
        for name, value in first.items():
            if other[name] != value:
                raise ValueError(
                    f"the ranks differ in {name}: rank {ranks[0]} has {value}, rank {rank} has {other[name]}"
                )


def _gathered(value: object, group: Group) -> list[Any]:
    values: list[Any] = [None] * world_size(group)
    dist.all_gather_object(values, value, group)
    return values
