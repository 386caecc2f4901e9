"""What a loss reaches in the autograd graph, and what in it cannot be harmonized."""

import re
from collections.abc import Collection, Iterable, Sequence, Set
from functools import cache, partial
from typing import NamedTuple

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from gh_downstream.harmonization.gradients import scaled


class Reach(NamedTuple):
    """Part of the autograd graph that a loss depends on.

    Attributes:
        leaves: The leaves, parameters as a rule, by the nodes at the end of the graph that accumulate their gradients.
        users: For each node, those ones included, the nodes that hand a gradient on to it; the first is the loss's own.
    """

    leaves: dict[Node, Tensor]
    users: dict[Node, list[Node]]

    @property
    def inner(self) -> set[Node]:
        """The nodes that are run, without those at the end."""
        return self.users.keys() - self.leaves.keys()

    def above(self, leaves: Collection[int]) -> set[Node]:
        """The nodes that the gradients of leaves, given by ``id``, come through, with those at the end."""
        stack = [node for node, leaf in self.leaves.items() if id(leaf) in leaves]
        found = set(stack)
        while stack:
            new = [user for user in self.users[stack.pop()] if user not in found]
            found.update(new)
            stack += new
        return found


def reach(name: str, loss: Tensor) -> Reach:
    """Walk the graph of a loss, named for errors; a few milliseconds for a large network, without touching the device.

    Raises:
        RuntimeError: The graph holds a reentrant checkpoint, which hides the parameters behind it.
    """
    leaves: dict[Node, Tensor] = {}
    users: dict[Node, list[Node]] = {}
    stack = [get_gradient_edge(loss).node] if loss.requires_grad else []
    users.update((node, []) for node in stack)
    while stack:
        node = stack.pop()
        if node.name().endswith("::AccumulateGrad"):
            leaves[node] = node.variable  # type: ignore[attr-defined]
        elif node.name() == "CheckpointFunctionBackward":
            raise RuntimeError(
                f"loss {name!r} went through reentrant activation checkpointing, which hides the parameters behind it "
                "from autograd. Call torch.utils.checkpoint.checkpoint(..., use_reentrant=False) "
                "(transformers: gradient_checkpointing_kwargs={'use_reentrant': False}), or harmonize at the features "
                "with gh_downstream.fork"
            )
        for function, _ in node.next_functions:
            if function is not None:
                if function not in users:
                    users[function] = []
                    stack.append(function)
                users[function].append(node)
    return Reach(leaves, users)


def scale_below(nodes: Set[Node], weight: Tensor) -> list[RemovableHandle]:
    """Have a backward pass multiply what it hands on from some nodes of a graph to the others."""
    handles = []
    for node in nodes:
        places = [k for k, (function, _) in enumerate(node.next_functions) if function and function not in nodes]
        if places:
            handles.append(node.register_hook(partial(_scale, places, weight)))
    return handles


def _scale(places: list[int], weight: Tensor, inputs: Sequence[Tensor | None], _: object) -> tuple[Tensor | None, ...]:
    gradients = list(inputs)
    for k in places:
        gradient = gradients[k]
        gradients[k] = None if gradient is None else scaled(gradient, weight)
    return tuple(gradients)


def shared_nodes(reaches: dict[str, Reach], twice: bool = False) -> dict[str, bool]:
    """Tell for each loss, in the order of the backward passes, whether its own has to retain the graph for a later one.

    Args:
        reaches: What each loss reaches.
        twice: Whether each loss is run backward twice.

    Raises:
        RuntimeError: Two backward passes go through a module compiled by ``torch.compile``. Its graph cannot be run
            twice: donated buffers raise, and with the documented switch ``donated_buffer=False`` a cached compilation
            from before the switch returns wrong gradients without a word.
    """
    retain: dict[str, bool] = {}
    names = list(reaches)
    inner = {name: reached.inner for name, reached in reaches.items()}
    for k, name in enumerate(names):
        shared = inner[name] & set[Node]().union(*(inner[other] for other in names[k + 1 :]))
        check_not_compiled(f"loss {name!r}", inner[name] if twice else shared)
        retain[name] = any(_keeps(type(node)) for node in shared)
    return retain


def check_not_compiled(what: str, nodes: Iterable[Node]) -> None:
    """Raise a RuntimeError where nodes that have to run backward more than once are those of a compiled module."""
    if any(node.name() in ("CompiledFunctionBackward", "GraphedBackward") for node in nodes):
        raise RuntimeError(
            f"{what} goes through a module compiled by torch.compile (or a CUDA graph) that has to run backward for "
            "another loss too, or once more, which it cannot. Leave it uncompiled, or harmonize at the features with "
            "gh_downstream.fork outside of it, which needs one backward pass"
        )


@cache
def _keeps(kind: type[Node]) -> bool:
    """Whether nodes keep tensors for their backward pass; those that are not autograd's own may.

    What two forward passes share under autocast are the casts of weights, which keep none: to retain them, and all that
    a loss reaches with them, would be for nothing.
    """
    return not re.search(r"Backward\d$", kind.__name__) or any(name.startswith("_raw_saved_") for name in dir(kind))
