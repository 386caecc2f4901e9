"""Backward passes and the gradients that they leave: in memory of their own, combined in place."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gh_downstream.harmonization.buckets import Buckets
from gh_downstream.harmonization.distributed import Group, all_reduce_mean, world_size
from gh_downstream.harmonization.sharding import from_slice, is_reduced, local, slice_of

_DDP = (
    "the forward pass went through DistributedDataParallel, which allows one backward pass only. Call the "
    "module inside it (ddp.module(...)), or, without static_graph, run the forward pass under "
    "`with ddp.no_sync():`; the harmonizer averages the gradients over the ranks itself"
)
# What torch says, and what is the matter. DistributedDataParallel says of a second backward pass the first by default,
# the second with find_unused_parameters=True, and the others with static_graph=True (there with no_sync() too).
_COMPLAINTS = {
    "mark a variable ready only once": _DDP,
    "undefined, but still allreduced": _DDP,
    "training graph has changed": _DDP,
    "expect_autograd_hooks_": _DDP,
    "backward through the graph a second time": (
        "the graph of these losses was run backward before: leave loss.backward() out, which the harmonizer does, and "
        "detach what is kept from an earlier step (torch: backward through the graph a second time)"
    ),
}


def total_loss(losses: Iterable[Tensor]) -> Tensor:
    """Return the sum of scalars, of shape ``[]``, on the device of the first."""
    first, *others = losses
    return torch.stack([loss.reshape(()).to(first.device) for loss in (first, *others)]).sum()


def run_backward(loss: Tensor, **arguments: Any) -> None:
    """Run ``loss.backward``, of a constant nothing."""
    if loss.requires_grad:
        with explained():
            loss.backward(**arguments)


@contextmanager
def explained() -> Iterator[None]:
    """Name the cause where torch refuses a backward pass because of another one."""
    try:
        yield
    except RuntimeError as error:
        cause = next((cause for complaint, cause in _COMPLAINTS.items() if complaint in str(error)), None)
        if cause is None:
            raise
        raise RuntimeError(cause) from None


@contextmanager
def without_hooks(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Take the hooks of ``Tensor.register_hook`` off: they are for the gradient of all losses, not for that of each."""
    hooked = [(hooks, dict(hooks)) for parameter in parameters if (hooks := parameter._backward_hooks)]
    for hooks, _ in hooked:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, taken in hooked:
            hooks.update(taken)


@contextmanager
def set_aside(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Begin with no gradients, run no hooks of ``Tensor.register_hook``, and leave the gradients that were before."""
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        with without_hooks(parameters):
            yield
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


@contextmanager
def fresh_gradients(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Begin with no gradients, and add those that are there at the end to those that were there before.

    The hooks of ``Tensor.register_hook`` run once, on what is added. After an error all gradients are as before.
    """
    with set_aside(parameters):
        yield
        added = [parameter.grad for parameter in parameters]
    for k, parameter in enumerate(parameters):
        for hook in (parameter._backward_hooks or {}).values():
            if (gradient := added[k]) is not None and (changed := hook(gradient)) is not None:
                added[k] = changed
    before = unaliased([parameter.grad for parameter in parameters])
    for parameter, old, new in zip(parameters, before, added, strict=True):
        parameter.grad = new if old is None else old if new is None else old.add_(new)


def unaliased(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Give each gradient memory of its own: autograd may leave two parameters views of one tensor in ``.grad``."""
    separate = list(gradients)
    slices = [None if gradient is None else local(gradient) for gradient in gradients]
    given = [gradient for gradient in slices if gradient is not None]
    dense = all(g.layout == torch.strided and g.is_contiguous() for g in given)
    if dense and len({g.untyped_storage()._cdata for g in given}) == len(given):
        return separate  # Each has a storage of its own.
    spans = []
    for k, gradient in enumerate(slices):
        if gradient is not None and gradient.layout == torch.strided and gradient.numel() and not gradient.is_meta:
            entries = gradient.numel()
            if not gradient.is_contiguous():
                entries = 1 + sum((n - 1) * stride for n, stride in zip(gradient.shape, gradient.stride(), strict=True))
            start = gradient.data_ptr()
            spans.append((start, start + entries * gradient.element_size(), entries < gradient.numel(), k))
    end = 0
    for start, stop, expanded, k in sorted(spans):
        gradient = gradients[k]
        if (start < end or expanded) and gradient is not None:
            separate[k] = gradient.clone(memory_format=torch.contiguous_format)
        else:
            end = stop
    return separate


def check_dense(gradients: Iterable[Tensor | None]) -> None:
    """Raise a ValueError where a gradient is sparse."""
    for gradient in gradients:
        if gradient is not None and gradient.layout != torch.strided:
            raise ValueError(
                f"a parameter of shape {list(gradient.shape)} has a sparse gradient, which cannot be measured: "
                "use torch.nn.Embedding(..., sparse=False), or leave it out of shared"
            )


def combine(gradients: Sequence[Sequence[Tensor | None]], weights: Tensor) -> list[Tensor | None]:
    """Weighted sum of gradients, made in place in their own memory; half precision is widened to float32."""
    half = (torch.float16, torch.bfloat16)
    totals: list[Tensor | None] = [None] * len(gradients[0])
    for gradient, weight in zip(gradients, weights, strict=True):
        terms = [g.float() if g is not None and g.dtype in half else g for g in gradient]
        fresh, added_to, added = list[Tensor](), list[Tensor](), list[Tensor]()
        for k, term in enumerate(terms):
            total = totals[k]
            if term is None:
                continue
            if total is None:
                totals[k] = term
                fresh.append(term)
            else:
                added_to.append(total)
                added.append(term)
        if weight.device.type == "cpu":  # A number is multiplied in the pass that adds, and a one not at all.
            factor = float(weight)
            if fresh and factor != 1:
                torch._foreach_mul_(fresh, factor)
            if added:
                torch._foreach_add_(added_to, added, alpha=factor)
            continue
        for kind in dict.fromkeys((term.device, term.dtype) for term in fresh + added):
            # A weight of another type takes a kernel for each term.
            of_kind = [t for t in fresh + added if (t.device, t.dtype) == kind]
            torch._foreach_mul_(of_kind, weight.to(kind[1]).to(kind[0]))
        if added:
            torch._foreach_add_(added_to, added)
    return totals


def scaled(tensor: Tensor, weight: Tensor) -> Tensor:
    """A tensor times a weight, multiplied in float32 or wider."""
    wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return (wide * weight.to(wide.dtype).to(wide.device)).to(tensor.dtype)


def average(parameters: Sequence[Tensor], group: Group) -> None:
    """Average ``.grad`` over the ranks, zeros where there is none: they must all reduce the same, each entry once."""
    parameters = [p for p in parameters if not is_reduced(p, group)] if world_size(group) > 1 else []
    if not parameters:
        return
    buckets = Buckets([local(parameter) for parameter in parameters], every=True)
    vectors = buckets.packed([slice_of(parameter.grad, parameter) for parameter in parameters])
    all_reduce_mean(vectors, group)
    for parameter, gradient in zip(parameters, buckets.unpacked(vectors), strict=True):
        parameter.grad = None if gradient is None else from_slice(gradient, parameter)
