"""Gather over the processes, with gradient."""

from __future__ import annotations

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
        x: Tensor of shape ``[n, ...]``, the same on every rank. Tensors of integers are gathered without gradient.

    Returns:
        Tensor of shape ``[ranks * n, ...]``, rank 0 first; ``x`` itself in a single process. Every rank must run
        backward through it, or none.
    """
    return x if world_size() == 1 else _Gather.apply(x)
