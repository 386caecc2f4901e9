"""Sums over the rows of a matrix of all pairs that is never there as a whole: chunk by chunk, and shared by ranks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ENTRIES = 2**21
"""Entries of the matrix that are computed at a time, with what autograd keeps of them."""


def own_rows(length: int, distributed: bool) -> tuple[range, int]:
    """Return the rows, of ``length``, that this process computes, and the number of processes that share them."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    return range(length * rank // ranks, length * (rank + 1) // ranks), ranks


def chunks(rows: range, width: int) -> Iterator[slice]:
    """Cut rows of a matrix of this width into chunks, at least one."""
    step = max(1, ENTRIES // max(1, width))
    for start in range(rows.start, max(rows.stop, rows.start + 1), step):
        yield slice(start, min(start + step, rows.stop))


def sum_of_rows(
    term: Callable[..., Tensor], length: int, width: int, inputs: Sequence[Tensor], distributed: bool = False
) -> Tensor:
    """Sum a term over the rows of a matrix.

    Beyond a single chunk the gradient is taken in the forward pass, so that memory holds one chunk and its graph, and
    it can be differentiated once.

    Args:
        term: Returns the sum of the terms of some rows, a scalar, from a slice of them and the inputs.
        length: Number of rows.
        width: Number of columns.
        inputs: Tensors that the term depends on; others in it get no gradient.
        distributed: Compute this process's share of the rows alone, times the number of processes: the mean over the
            processes, of the value and of its gradient, is that of all rows. All processes have the same inputs.
    """
    rows, ranks = own_rows(length, distributed)
    cut = [*chunks(rows, width)]
    if not torch.is_grad_enabled():
        inputs = [x.detach() for x in inputs]
    total = term(cut[0], *inputs) if len(cut) == 1 else _SumOfChunks.apply(term, cut, *inputs)
    return total * ranks if distributed else total


class _SumOfChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, term: Callable[..., Tensor], cut: Sequence[slice], *inputs: Tensor) -> Tensor:
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
        trained = [leaf for leaf in leaves if leaf.requires_grad]
        gradients = [torch.zeros_like(leaf) for leaf in trained]
        totals = []
        for rows in cut:
            with torch.enable_grad():
                value = term(rows, *leaves)
            totals.append(value.detach())
            for total, gradient in zip(gradients, torch.autograd.grad(value, trained) if trained else (), strict=True):
                total += gradient
        ctx.save_for_backward(*gradients)
        return torch.stack(totals).sum()

    @staticmethod
    def backward(ctx: Any, received: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a loss over so many pairs can be differentiated once only: do without create_graph=True"
            )
        gradients = iter(ctx.saved_tensors)
        return None, None, *(next(gradients) * received if needed else None for needed in ctx.needs_input_grad[2:])
