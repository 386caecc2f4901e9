"""The backward passes of a step: the gradient of each task, or that of the weighted losses in one pass."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import Node

from gh_downstream.harmonization.buckets import Buckets
from gh_downstream.harmonization.chunks import Chunks, added, collected
from gh_downstream.harmonization.distributed import Group, begin_mean, gather, part, world_size
from gh_downstream.harmonization.gradients import (
    check_dense,
    combine,
    explained,
    run_backward,
    scaled,
    set_aside,
    total_loss,
    unaliased,
    without_hooks,
)
from gh_downstream.harmonization.gramian import gramian
from gh_downstream.harmonization.graph import Reach, keeps_tensors, scale_below
from gh_downstream.harmonization.sharding import Ranks, from_slice, slice_of

Rows: TypeAlias = list[list[Any]]
"""For each task its gradient, None or a tensor for each parameter; or the vectors that hold it."""


Scale: TypeAlias = Callable[[Tensor], Tensor] | torch.amp.GradScaler | None
"""What scales a loss for its backward pass."""


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
        held: The weights that are held; None where the step measures.
        averaged: Whether the gradients of each task are averaged over the ranks before they are measured.
        ranks: The ranks.
    """

    losses: dict[str, Tensor]
    factors: list[float]
    reaches: dict[str, Reach]
    again: dict[str, set[Node]]
    shared: list[Tensor]
    combined: list[Tensor]
    private: list[Tensor]
    buckets: Buckets | None
    held: Tensor | None
    averaged: bool
    ranks: Ranks

    @property
    def reached(self) -> dict[str, bool]:
        """Whether each loss reaches a shared parameter."""
        shared = {id(parameter) for parameter in self.shared}
        return {task: any(id(leaf) in shared for leaf in r.leaves.values()) for task, r in self.reaches.items()}


def gradients_by_task(step: Step) -> Rows:
    """Return the gradient of each task over the parameters that are combined, and leave their sum to the private ones.

    That of one is averaged over the ranks while the next loss runs backward.

    Returns:
        A row for each task: a gradient for each parameter, or the vectors that hold them.

    Raises:
        ValueError: One of the former is sparse.
    """
    rows: Rows = []
    pending: list[Callable[[], None]] = []
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
            rows.append(own if chunked else _row(step, own, pending))
        for chunks, tasks in chunked.items():
            _run_chunks(step, chunks, [rows[task] for task in tasks])
    if chunked:
        rows = [_row(step, own, pending) for own in rows]
    for wait in pending:
        wait()
    return rows


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


def _row(step: Step, gradient: list[Tensor | None], pending: list[Callable[[], None]]) -> list[Any]:
    """What this rank has of a gradient, or the vectors that hold it, whose average over the ranks begins."""
    check_dense(gradient)
    own = list(gradient)
    if step.ranks.sharded:
        own = [slice_of(g, parameter) for g, parameter in zip(gradient, step.combined, strict=True)]
    gradient.clear()
    if step.buckets is None:
        return own
    vectors = step.buckets.packed(own)
    for vector, spread in zip(vectors, step.buckets.spreads, strict=True):
        if spread.averaged:
            pending.append(begin_mean(vector, step.ranks.group, spread.scattered))
    return vectors


def measured(step: Step, rows: Rows) -> Tensor:
    """Return the Gramian of the tasks over the shared parameters, on all ranks that of all."""
    if step.buckets is None or not step.ranks.groups:
        n = len(step.shared) if step.buckets is None else step.buckets.first
        return gramian([row[:n] for row in rows])
    spreads = step.buckets.spreads[: step.buckets.first]
    total = torch.zeros((), dtype=torch.float64)
    for spread in dict.fromkeys(spreads):
        places = [k for k, other in enumerate(spreads) if other == spread]
        # Of what all ranks have, each measures a part.
        parts = [[part(row[k], step.ranks.group) if spread.averaged else row[k] for k in places] for row in rows]
        total = gramian(parts) * (spread.slices / math.prod(map(world_size, step.ranks.groups))) + total
    for group in step.ranks.groups:
        dist.all_reduce(total, group=group)
    return total


def ordered_losses(
    losses: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale = None
) -> dict[str, Tensor]:
    """Return losses in the order of the tasks, with their fixed weights by task, and scaled.

    Raises:
        TypeError: They are not given by task, or the scale is neither a function nor has one of that name.
        ValueError: The names are not those of the tasks, or a loss is not a scalar.
    """
    if not isinstance(losses, Mapping):
        example = "{" + ", ".join(f'"{task}": ...' for task in weights) + "}"
        raise TypeError(f"losses are given by the names of their tasks, as in {example}, got {type(losses).__name__}")
    if set(losses) != set(weights):
        raise ValueError(
            f"the tasks of this harmonizer are {list(weights)}, got losses {list(losses)}: "
            + (
                "at a step without one give it as 0 * features.sum()"
                if losses.keys() < weights.keys()
                else "name them with Harmonizer(..., tasks=[...])"
            )
        )
    scaled_by = getattr(scale, "scale", scale)  # Of a GradScaler.
    if not (scaled_by is None or callable(scaled_by)):
        raise TypeError(f"scale takes a GradScaler, or a function that scales a loss, got {scale!r}")
    found = {}
    for task, weight in weights.items():
        loss = losses[task]
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise ValueError(f"loss {task!r} has to be a scalar tensor, got {what}")
        loss = loss if scaled_by is None else scaled_by(loss)
        found[task] = loss if weight == 1 else loss * weight
    return found


def read_losses(losses: Mapping[str, Tensor], gramian: Tensor, groups: Sequence[Group]) -> dict[str, float]:
    """Read losses to the host, from where the Gramian is: the mean over the ranks of groups."""
    values = torch.stack([loss.detach().reshape(()).to(gramian) for loss in losses.values()])
    for group in groups:
        dist.all_reduce(values, group=group)
    return dict(zip(losses, (values / math.prod(map(world_size, groups))).tolist(), strict=True))


def leave_combined(step: Step, rows: Rows, weights: Tensor) -> None:
    """Leave the weighted sum of the tasks' gradients, times the trade-offs, to the parameters that are combined."""
    weights = _traded(step, weights)
    if step.buckets is None:
        totals = combine(rows, weights)
    else:
        scattered = [spread.scattered for spread in step.buckets.spreads]
        parts = [[part(v, step.ranks.group) if s else v for v, s in zip(row, scattered, strict=True)] for row in rows]
        combine(parts, weights)
        gather([v for v, s in zip(rows[0], scattered, strict=True) if s], step.ranks.group)
        totals = step.buckets.unpacked(rows[0])
    for parameter, total in zip(step.combined, totals, strict=True):
        parameter.grad = None if total is None else from_slice(total.to(parameter.dtype), parameter)


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


def probed_gradients(step: Step) -> Rows:
    """Return the gradient of each task over the shared parameters, touching no ``.grad`` and keeping the graphs.

    Raises:
        ValueError: A gradient is sparse.
    """
    if step.ranks.sharded:  # Whose parameters are not in the graph: their gradients come from its hooks alone.
        with set_aside(step.combined + step.private):
            return gradients_by_task(step)
    leaves = [leaf for reached in step.reaches.values() for leaf in reached.leaves.values()]
    rows: Rows = []
    pending: list[Callable[[], None]] = []
    with without_hooks(leaves):
        for loss in step.losses.values():
            found: list[Tensor | None] = [None] * len(step.combined)
            if loss.requires_grad:
                with explained():
                    found = list(torch.autograd.grad(loss, step.combined, retain_graph=True, allow_unused=True))
            rows.append(_row(step, found, pending))
    for wait in pending:
        wait()
    return rows


def _traded(step: Step, weights: Tensor) -> Tensor:
    """Weights of shape ``[m]`` times the trade-offs, which are not copied to the device."""
    if all(factor == 1 for factor in step.factors):
        return weights
    return torch.stack([weight * factor for weight, factor in zip(weights, step.factors, strict=True)])
