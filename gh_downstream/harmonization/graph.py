"""What a loss reaches in the autograd graph, and what in it cannot be harmonized."""

from collections.abc import Collection, Mapping, Sequence, Set
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from gh_downstream.harmonization.gradients import scaled

_ACCUMULATION = torch._C._functions.AccumulateGrad
_BUILT_IN = frozenset(kind for kind in vars(torch._C._functions).values() if isinstance(kind, type))


class Reach(NamedTuple):
    """Part of the autograd graph that a loss depends on.

    Attributes:
        leaves: The leaves, parameters as a rule, by the nodes at the end of the graph that accumulate their gradients.
        inner: The nodes that are run, without those at the end.
        custom: Those among them that Python or an extension has defined.
    """

    leaves: dict[Node, Tensor]
    inner: set[Node]
    custom: list[Node]

    def above(self, leaves: Collection[int]) -> set[Node]:
        """The nodes that the gradients of leaves, given by ``id``, come through, with those at the end."""
        users: dict[Node, list[Node]] = {}
        for node in self.inner:
            for function, _ in node.next_functions:
                if function is not None:
                    users.setdefault(function, []).append(node)
        stack = [node for node, leaf in self.leaves.items() if id(leaf) in leaves]
        found = set(stack)
        while stack:
            new = [user for user in users.get(stack.pop(), ()) if user not in found]
            found.update(new)
            stack += new
        return found


def reach(name: str, loss: Tensor, stand_ins: Mapping[int, Tensor]) -> Reach:
    """Walk the graph of a loss, named for errors; a tenth of a millisecond for 500 nodes, without touching the device.

    Args:
        name: Name of the loss.
        loss: The loss.
        stand_ins: The parameters that other leaves stand for, by ``id`` of these.

    Raises:
        RuntimeError: The graph holds a reentrant checkpoint, which hides the parameters behind it.
    """
    stack = [get_gradient_edge(loss).node] if loss.requires_grad else []
    seen = dict.fromkeys(stack)  # A set whose order is the same in each run, as the leaves' is then.
    while stack:
        for function, _ in stack.pop().next_functions:
            if function is not None and function not in seen:
                seen[function] = None
                stack.append(function)
    ends = {node: node.variable for node in seen if type(node) is _ACCUMULATION}  # type: ignore[attr-defined]
    leaves = {node: stand_ins.get(id(leaf), leaf) for node, leaf in ends.items()}
    custom = [node for node in seen if type(node) not in _BUILT_IN]
    if any(node.name() == "CheckpointFunctionBackward" for node in custom):
        raise RuntimeError(
            f"loss {name!r} went through reentrant activation checkpointing, which hides the parameters behind it "
            "from autograd. Call torch.utils.checkpoint.checkpoint(..., use_reentrant=False) "
            "(transformers: gradient_checkpointing_kwargs={'use_reentrant': False}), or harmonize at the features "
            "with gh_downstream.fork"
        )
    return Reach(leaves, seen.keys() - leaves.keys(), custom)


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


def nodes_again(reaches: Mapping[str, Reach], apart: bool = False) -> dict[str, set[Node]]:
    """Find the nodes that the backward pass of each loss, in the order of the passes, leaves to a later one.

    Args:
        reaches: What each loss reaches.
        apart: Whether each loss as a whole is run backward once more.

    Raises:
        RuntimeError: Two backward passes go through a module compiled by ``torch.compile``. Its graph cannot be run
            twice: donated buffers raise, and with the documented switch ``donated_buffer=False`` a cached compilation
            from before the switch returns wrong gradients without a word. Or one ends in ``DistributedDataParallel``
            with ``static_graph``, and is no more than a measurement.
    """
    again = {name: set(reached.inner) for name, reached in reaches.items()}
    if not apart:
        for k, name in enumerate(again):
            later = [reached.inner for reached in list(reaches.values())[k + 1 :]]
            again[name] &= set[Node]().union(*later)
    for name, reached in reaches.items():
        custom = [node for node in reached.custom if node in again[name]]
        if any(node.name() in ("CompiledFunctionBackward", "GraphedBackward") for node in custom):
            raise RuntimeError(
                f"loss {name!r} goes through a module compiled by torch.compile (or a CUDA graph) that has to run "
                "backward for another loss too, or once more, which it cannot. Leave it uncompiled, or harmonize at "
                "the features with gh_downstream.fork outside of it, which needs one backward pass"
            )
        sinks = [node for node in custom if node.name() == "_DDPSinkBackward"]
        if apart and any(sink.ddp_weakref().static_graph for sink in sinks):  # type: ignore[attr-defined]
            raise RuntimeError(
                "weigh got losses of a DistributedDataParallel with static_graph=True, whose reduction would start "
                "in the measurement and leave the ranks with different gradients; call the module inside it"
            )
    return again


@cache
def keeps_tensors(kind: type[Node]) -> bool:
    """Whether nodes of a kind keep tensors for their backward pass; those that torch has not defined may.

    What two forward passes share under autocast are the casts of weights, which keep none: to retain them would be for
    nothing, and all that a loss reaches beside them would be retained too.
    """
    if kind not in _BUILT_IN or kind.__name__ == "CopySlices":  # Which has a node of another kind inside.
        return True
    return any(name.startswith("_raw_saved_") for name in dir(kind))
