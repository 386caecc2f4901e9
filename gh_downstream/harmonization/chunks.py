"""A trunk applied chunk by chunk in the memory of one: its activations are computed again in the backward pass.

The losses need the features of the whole batch, the trunk does not. So the features are computed without a graph, the
losses run backward as far as to them, and each chunk is then computed once more, with a graph, through which their
gradients go on (gradient caching: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup", RepL4NLP 2021, arXiv 2101.06983). A harmonizer takes the gradients of all tasks through one such computation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states

from gh_downstream.harmonization.gradients import without_hooks
from gh_downstream.harmonization.graph import Reach, reach


def in_chunks(function: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """Return what a function makes of a batch, ``size`` rows at a time; its activations are not kept.

    Values and gradients are those of ``torch.cat([function(chunk) for chunk in x.split(size)])``, random numbers and
    autocast included. A backward pass computes each chunk again, a :class:`~gh_downstream.Harmonizer` once for all
    tasks; or once for each, where there are functions that torch has not defined (a compiled module, a fused layer),
    which may not run backward twice. What counts batches, such as running statistics, sees each chunk twice or more.

    Args:
        function: Takes rows ``[n, ...]`` and returns as many; a module, say.
        x: The batch of shape ``[N, ...]``.
        size: Rows of a chunk, at least 1.

    Raises:
        RuntimeError: The function goes through reentrant activation checkpointing.
    """
    if not torch.is_grad_enabled():
        return torch.cat([function(chunk) for chunk in x.split(size)])
    chunks = Chunks(function, x.split(size))
    features = torch.cat([chunks.first(chunk) for chunk in x.split(size)])
    return _InChunks.apply(chunks, features, *chunks.parameters)


class Chunks:
    """The chunks of a batch, and what their second computation has in common with the first.

    Attributes:
        parameters: What the function depends on that needs a gradient.
        seeds: Gradients at the features, one for each backward pass, where they are collected; see :func:`collected`.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], chunks: Sequence[Tensor]) -> None:
        self.parameters: list[Tensor] = []
        self.seeds: list[Tensor] | None = None
        self._function, self._chunks = function, chunks
        self._kind = chunks[0].device.type
        kinds = [kind for kind in dict.fromkeys(("cpu", self._kind)) if torch.amp.is_autocast_available(kind)]
        self._casts = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in kinds]
        self._at_once = True  # Whether a second computation serves all seeds.
        self._random: list[tuple[Tensor, list[int], list[Tensor]]] = []

    def first(self, chunk: Tensor) -> Tensor:
        """Compute the features of the next chunk, whose graph is looked at and thrown away."""
        self._random.append((torch.get_rng_state(), *get_device_states(chunk)))
        features = self._function(chunk)
        reached = reach("in chunks", features, {})
        self._at_once &= not reached.custom
        found = [*self.parameters, *reached.leaves.values()]
        self.parameters = list({id(parameter): parameter for parameter in found}.values())
        return features.detach()

    def run_backward(self, seeds: Sequence[Tensor], add: Callable[[int, Tensor, Tensor], Tensor]) -> None:
        """Compute each chunk again, and run backward through it for each of the seeds.

        Args:
            seeds: Gradients at the features.
            add: Called with the number of a seed, a parameter and the gradient that the seed sends to it from a chunk;
                returns what it was added to.
        """
        number = 0

        def received(parameter: Tensor, gradient: Tensor) -> Tensor:
            return add(number, parameter, gradient)

        parts = zip(*(seed.split([len(chunk) for chunk in self._chunks]) for seed in seeds), strict=True)
        with without_hooks(self.parameters), ExitStack() as hooks:
            for parameter in self.parameters:
                # Added as they come, there is never a gradient of all parameters beside the sum.
                hooks.callback(parameter.register_hook(partial(received, parameter)).remove)
            for k, part in enumerate(parts):
                for number, seed in enumerate(part):
                    if number == 0 or not self._at_once:
                        features = self._again(k)
                    if features.requires_grad:
                        retain = self._at_once and number + 1 < len(seeds)
                        torch.autograd.grad(features, self.parameters, seed, retain_graph=retain, allow_unused=True)
                del features  # before the next

    def _again(self, k: int) -> Tensor:
        """The features of a chunk, with a graph."""
        state, devices, states = self._random[k]
        with torch.random.fork_rng(devices, device_type=self._kind), torch.enable_grad(), ExitStack() as casts:
            torch.set_rng_state(state)
            if devices:
                set_device_states(devices, states, device_type=self._kind)
            for kind, dtype, enabled in self._casts:
                casts.enter_context(torch.autocast(kind, dtype, enabled))
            return self._function(self._chunks[k])


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chunks: Chunks, features: Tensor, *parameters: Tensor) -> Tensor:
        ctx.chunks = chunks
        return features.view_as(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
        chunks: Chunks = ctx.chunks
        if chunks.seeds is not None:
            chunks.seeds.append(seed)
            return (None,) * (2 + len(chunks.parameters))
        totals: dict[int, Tensor] = {}

        def add(_: int, parameter: Tensor, gradient: Tensor) -> Tensor:
            totals[id(parameter)] = added(totals.get(id(parameter)), gradient, parameter)
            return totals[id(parameter)]

        chunks.run_backward([seed], add)
        return None, None, *(totals.get(id(parameter)) for parameter in chunks.parameters)


def added(total: Tensor | None, gradient: Tensor, parameter: Tensor) -> Tensor:
    """Add a gradient of a parameter to a sum in place; None begins one, in the memory format of the parameter."""
    return torch.empty_like(parameter).copy_(gradient) if total is None else total.add_(gradient)


@contextmanager
def collected(reaches: Sequence[Reach]) -> Iterator[dict[Chunks, list[int]]]:
    """Have backward passes end where a function was applied in chunks, and keep the gradients there as ``seeds``.

    Yields:
        For each of the chunks the numbers of the losses that reach them, one for each seed.
    """
    found: dict[Chunks, list[int]] = {}
    for number, reached in enumerate(reaches):
        for node in reached.custom:
            if isinstance(chunks := getattr(node, "chunks", None), Chunks):
                found.setdefault(chunks, []).append(number)
    for chunks in found:
        chunks.seeds = []
    try:
        yield found
    finally:
        for chunks in found:
            chunks.seeds = None
