"""Backward passes and the gradients that they leave: in memory of their own, combined in place."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gh_downstream.harmonization.buckets import Buckets
from gh_downstream.harmonization.distributed import all_reduce_mean, world_size

# What DistributedDataParallel says of a second backward pass: by default, with find_unused_parameters=True, and with
# static_graph=True (there with no_sync() too).
_DDP_COMPLAINTS = (
    "mark a variable ready only once",
    "undefined, but still allreduced",
    "training graph has changed",
    "expect_autograd_hooks_",
)


def total_loss(losses: Iterable[Tensor]) -> Tensor:
    """Return the sum of scalars, of shape ``[]``."""
    return torch.stack([loss.reshape(()) for loss in losses]).sum()


def run_backward(loss: Tensor, **arguments: Any) -> None:
    """Run ``loss.backward``; what DistributedDataParallel says of a second pass is explained."""
    try:
        loss.backward(**arguments)
    except RuntimeError as error:
        if not any(complaint in str(error) for complaint in _DDP_COMPLAINTS):
            raise
        raise RuntimeError(
            "the forward pass went through DistributedDataParallel, which allows one backward pass only. Call the "
            "module inside it (ddp.module(...)), or, without static_graph, run the forward pass under "
            "`with ddp.no_sync():`; the harmonizer averages the gradients over the ranks itself"
        ) from error


def separate(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Give each gradient memory of its own: autograd may leave two parameters views of one tensor in ``.grad``."""
    seen: set[int] = set()
    separate: list[Tensor | None] = []
    for gradient in gradients:
        if gradient is not None and gradient.layout != torch.strided:
            raise ValueError(
                f"a parameter of shape {list(gradient.shape)} has a sparse gradient, which cannot be measured: "
                "use torch.nn.Embedding(..., sparse=False), or leave it out of shared"
            )
        memory = 0 if gradient is None else gradient.data_ptr()
        separate.append(gradient.clone() if gradient is not None and memory in seen else gradient)
        seen.add(memory)
    return separate


def combine(gradients: Sequence[Sequence[Tensor | None]], weights: Tensor) -> list[Tensor | None]:
    """Weighted sum of gradients, made in place in their own memory; half precision is widened to float32."""
    half = (torch.float16, torch.bfloat16)
    totals: list[Tensor | None] = [None] * len(gradients[0])
    for gradient, weight in zip(gradients, weights, strict=True):
        places = [k for k, g in enumerate(gradient) if g is not None]
        terms = [g.float() if g.dtype in half else g for g in gradient if g is not None]
        for dtype in {term.dtype for term in terms}:  # a weight of another type takes a kernel for each term
            torch._foreach_mul_([term for term in terms if term.dtype == dtype], weight.to(dtype))
        both = [(totals[k], term) for k, term in zip(places, terms, strict=True) if totals[k] is not None]
        if both:
            torch._foreach_add_([total for total, _ in both], [term for _, term in both])  # type: ignore[misc]
        for k, term in zip(places, terms, strict=True):
            totals[k] = term if totals[k] is None else totals[k]
    return totals


def accumulate(parameters: Sequence[Tensor], totals: Sequence[Tensor | None]) -> None:
    """Add to ``.grad`` of parameters; None adds nothing."""
    found = [(parameter, total) for parameter, total in zip(parameters, totals, strict=True) if total is not None]
    both = [(parameter.grad, total) for parameter, total in found if parameter.grad is not None]
    if both:
        torch._foreach_add_([gradient for gradient, _ in both], [total for _, total in both])
    for parameter, total in found:
        if parameter.grad is None:
            parameter.grad = total.to(parameter.dtype)


def average(parameters: Sequence[Tensor]) -> None:
    """Average ``.grad`` over the ranks, zeros where there is none: all must reduce the same, each entry once."""
    if world_size() == 1:
        return
    buckets = Buckets(parameters, every=True)
    vectors = buckets.packed([parameter.grad for parameter in parameters])
    all_reduce_mean(vectors)
    for parameter, gradient in zip(parameters, buckets.unpacked(vectors), strict=True):
        parameter.grad = gradient
