"""Gather over the processes, with gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gh_downstream.harmonization.distributed import world_size


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Not reduce_scatter, which gloo lacks.
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world_size())[dist.get_rank()]


def gather_with_gradient(x: Tensor) -> Tensor:
    """Concatenate a tensor over the ranks; the gradients that all ranks send to a part are summed.

    A loss that every rank computes over the gathered tensors, and whose parameter gradients are then **averaged** over
    the ranks (a :class:`~gh_downstream.Harmonizer` does, ``DistributedDataParallel`` too), has the gradient that one
    process has on the joined batch.

    Args:
        x: Tensor of shape ``[n, ...]``, the same on every rank, as the backends abort the process, wait forever or mix
            up rows otherwise. Tensors of integers are gathered without gradient.

    Returns:
        Tensor of shape ``[ranks * n, ...]``, rank 0 first; ``x`` itself in a single process. Every rank must run
        backward through it, or none.

    Raises:
        ValueError: The ranks have different ``n``. On a GPU, where looking means to wait for it, only the first tensor
            of each type and shape of a row is looked at.
    """
    if world_size() == 1:
        return x
    _check_sizes(x)
    return _Gather.apply(x)


_SEEN: set[tuple[torch.dtype, torch.Size]] = set()


def _check_sizes(x: Tensor) -> None:
    # Whether to look has to be the same decision on every rank, so that it cannot depend on the number of rows.
    kind = (x.dtype, x.shape[1:])
    if x.device.type != "cpu" and kind in _SEEN:
        return
    _SEEN.add(kind)
    size = torch.tensor([len(x)], device=x.device)
    sizes = [torch.empty_like(size) for _ in range(world_size())]
    dist.all_gather(sizes, size)
    found = torch.cat(sizes).tolist()
    if len(set(found)) > 1:
        raise ValueError(
            f"the processes have {', '.join(map(str, found))} rows to gather, by rank, and need as many each: give all "
            "of them batches of one size (drop_last=True for a DataLoader)"
        )
