"""The collectives that harmonization needs."""

from collections.abc import Sequence

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
