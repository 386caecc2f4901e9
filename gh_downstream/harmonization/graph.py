"""What a loss reaches in the autograd graph, and what in it cannot be harmonized."""

from typing import NamedTuple

from torch import Tensor
from torch.autograd.graph import Node


class Reach(NamedTuple):
    """Part of the autograd graph that a loss depends on: its leaves, parameters as a rule, and its inner nodes."""

    leaves: list[Tensor]
    nodes: set[Node]


def reach(name: str, loss: Tensor) -> Reach:
    """Walk the graph of a loss, named for errors; a few milliseconds for a large network, without touching the device.

    Raises:
        RuntimeError: The graph holds a reentrant checkpoint, which hides the parameters behind it.
    """
    leaves = {id(loss): loss} if loss.grad_fn is None and loss.requires_grad else {}
    nodes: set[Node] = set()
    stack = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in nodes:
            continue
        if node.name().endswith("::AccumulateGrad"):  # the end of the graph, at a leaf
            leaf: Tensor = node.variable  # type: ignore[attr-defined]
            leaves[id(leaf)] = leaf
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise RuntimeError(
                f"loss {name!r} went through reentrant activation checkpointing, which hides the parameters behind it "
                "from autograd. Call torch.utils.checkpoint.checkpoint(..., use_reentrant=False) "
                "(transformers: gradient_checkpointing_kwargs={'use_reentrant': False}), or harmonize at the features "
                "with gh_downstream.fork"
            )
        nodes.add(node)
        stack.extend(function for function, _ in node.next_functions)
    return Reach(list(leaves.values()), nodes)


def shared_nodes(reaches: dict[str, Reach], twice: bool = False) -> dict[str, bool]:
    """Tell for each loss, in the order of the backward passes, whether its own has to retain the graph for a later one.

    Args:
        reaches: What each loss reaches.
        twice: Whether a single loss may be run backward twice.

    Raises:
        RuntimeError: Two backward passes go through a module compiled by ``torch.compile``. Its graph cannot be run
            twice: donated buffers raise, and with the documented switch ``donated_buffer=False`` a cached compilation
            from before the switch returns wrong gradients without a word.
    """
    retain: dict[str, bool] = {}
    names = list(reaches)
    for k, name in enumerate(names):
        later = set[Node]().union(*(reaches[other].nodes for other in names[k + 1 :]))
        shared = reaches[name].nodes & later
        again = reaches[name].nodes if twice else shared
        if any(node.name() in ("CompiledFunctionBackward", "GraphedBackward") for node in again):
            raise RuntimeError(
                f"loss {name!r} goes through a module compiled by torch.compile (or a CUDA graph) that has to run "
                "backward twice, for another loss or a period, which it cannot. Leave it uncompiled, set period=1, or "
                "harmonize at the features with gh_downstream.fork outside of it, which needs one backward pass"
            )
        retain[name] = bool(shared)
    return retain
