"""The backward passes of a step: the gradient of each task, or that of the weighted losses in one pass."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

from gh_downstream.harmonization.buckets import Buckets
from gh_downstream.harmonization.chunks import Chunks, added, collected
from gh_downstream.harmonization.distributed import world_size
from gh_downstream.harmonization.gradients import (
    check_dense,
    combine,
    run_backward,
    scaled,
    total_loss,
    unaliased,
    without_hooks,
)
from gh_downstream.harmonization.graph import Reach, keeps_tensors, scale_below


class Step(NamedTuple):
    """What a step has to do, found before a gradient is written.

    Attributes:
        losses: The losses with their fixed weights, in the order of the tasks.
        factors: The trade-off of each.
        reaches: What each reaches.
        again: Which nodes of its graph the backward pass of each leaves to a later one.
        shared: The parameters that the tasks share, and that are trained.
        combined: Those whose gradients are weighed, the shared ones first.
        private: The others.
        buckets: Of the parameters that are combined, where their gradients are measured in flat vectors.
    """

    losses: dict[str, Tensor]
    factors: list[float]
    reaches: dict[str, Reach]
    again: dict[str, set[Node]]
    shared: list[Tensor]
    combined: list[Tensor]
    private: list[Tensor]
    buckets: Buckets | None

    @property
    def reached(self) -> dict[str, bool]:
        """Whether each loss reaches a shared parameter."""
        shared = {id(parameter) for parameter in self.shared}
        return {task: any(id(leaf) in shared for leaf in r.leaves.values()) for task, r in self.reaches.items()}


def gradients_by_task(step: Step) -> list[list[Tensor | None]]:
    """Return the gradient of each task over the parameters that are combined, and leave their sum to the private ones.

    Returns:
        A row for each task: a gradient for each parameter, or the vectors that hold them.

    Raises:
        ValueError: One of the former is sparse.
    """
    gradients = []
    n = len(step.combined)
    with collected(list(step.reaches.values())) as chunked:
        for task, loss in step.losses.items():
            retain = any(keeps_tensors(type(node)) for node in step.again[task])
            run_backward(loss, retain_graph=retain)
            found = unaliased([parameter.grad for parameter in step.combined + step.private])
            own, others = found[:n], found[n:]
            del found
            for parameter, gradient in zip(step.combined + step.private, [None] * n + others, strict=True):
                parameter.grad = gradient
            check_dense(own)
            gradients.append(own)
        for chunks, tasks in chunked.items():
            _run_chunks(step, chunks, [gradients[task] for task in tasks])
    return gradients if step.buckets is None else [step.buckets.packed(own) for own in gradients]


def _run_chunks(step: Step, chunks: Chunks, gradients: Sequence[list[Tensor | None]]) -> None:
    """Add what goes on from the seeds of chunks: to the gradients of their tasks, and to those of private ones."""
    places = {id(parameter): place for place, parameter in enumerate(step.combined)}

    def add(seed: int, parameter: Tensor, gradient: Tensor) -> Tensor:
        place = places.get(id(parameter))
        total = parameter.grad if place is None else gradients[seed][place]
        total = added(total, gradient, parameter)
        if place is None:
            parameter.grad = total
        else:
            gradients[seed][place] = total
        return total

    assert chunks.seeds is not None
    chunks.run_backward(chunks.seeds, add)


def leave_combined(step: Step, gradients: list[list[Tensor | None]], weights: Tensor) -> None:
    """Leave the weighted sum of the tasks' gradients, times the trade-offs, to the parameters that are combined."""
    totals = combine(gradients, _traded(step, weights))
    if step.buckets is not None:
        totals = step.buckets.unpacked(totals)
    for parameter, total in zip(step.combined, totals, strict=True):
        parameter.grad = None if total is None else total.to(parameter.dtype)


def run_weighed(step: Step, weights: Tensor) -> None:
    """Leave the gradients that known weights give; where they can be told apart in one pass, in one.

    What goes on from the private parts of a graph to the rest of it is multiplied in passing.
    """
    private = {id(parameter) for parameter in step.private}
    above = [reached.above(private) for reached in step.reaches.values()]
    inner = [nodes - reached.leaves.keys() for nodes, reached in zip(above, step.reaches.values(), strict=True)]
    if sum(map(len, inner)) > len(set[Node]().union(*inner)):  # Private parameters lie in what the tasks share.
        leave_combined(step, gradients_by_task(step), weights)
        return
    terms, handles = [], []
    for weight, nodes, loss in zip(_traded(step, weights), above, step.losses.values(), strict=True):
        terms.append(loss if loss.grad_fn in nodes else scaled(loss, weight))
        handles += scale_below(nodes, weight)
    try:
        run_backward(total_loss(terms))
        written = step.combined + step.private
        for parameter, gradient in zip(written, unaliased([p.grad for p in written]), strict=True):
            parameter.grad = gradient
    finally:
        for handle in handles:
            handle.remove()


def probed_gradients(step: Step) -> list[list[Tensor | None]]:
    """Return the gradient of each task over the shared parameters, touching no ``.grad`` and keeping the graphs.

    Raises:
        ValueError: A gradient is sparse.
    """
    leaves = [list(reached.leaves.values()) for reached in step.reaches.values()]
    with without_hooks([leaf for reached in leaves for leaf in reached]):
        gradients = [_probe(loss, step.combined) for loss in step.losses.values()]
    for gradient in gradients:
        check_dense(gradient)
    return gradients


def _probe(loss: Tensor, parameters: list[Tensor]) -> list[Tensor | None]:
    several = world_size() > 1
    if not loss.requires_grad:
        return [torch.zeros_like(parameter) if several else None for parameter in parameters]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=several)
    # They are averaged in place: autograd may return an expanded tensor, or one tensor for two parameters.
    return unaliased(found) if several else list(found)


def _traded(step: Step, weights: Tensor) -> Tensor:
    """Weights of shape ``[m]`` times the trade-offs, which are not copied to the device."""
    if all(factor == 1 for factor in step.factors):
        return weights
    return torch.stack([weight * factor for weight, factor in zip(weights, step.factors, strict=True)])
