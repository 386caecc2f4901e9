"""What a loss reaches in the autograd graph, and what in it cannot be harmonized."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node


@dataclass(frozen=True)
class Reach:
    """Part of the autograd graph that a loss depends on.

    Attributes:
        leaves: Leaf tensors, parameters as a rule, that the loss sends a gradient to, in order of discovery.
        nodes: Inner nodes of the graph.
    """

    leaves: list[Tensor]
    nodes: set[Node]


def reach(name: str, loss: Tensor) -> Reach:
    """Walk the graph of a loss; a few milliseconds for a large network, without touching the device.

    Args:
        name: Name of the loss, for errors.
        loss: A scalar, of any shape with one element.

    Returns:
        What the loss reaches; nothing for a loss without a graph.

    Raises:
        RuntimeError: The graph holds a reentrant checkpoint, which hides the parameters behind it.
    """
    leaves: dict[int, Tensor] = {}
    nodes: set[Node] = set()
    stack = [loss.grad_fn]
    if loss.grad_fn is None and loss.requires_grad:
        leaves[id(loss)] = loss
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
    """Tell for each loss, in order, whether its graph is needed again by a later one.

    Args:
        reaches: What each loss reaches, in the order of the backward passes.
        twice: Whether a single loss may be run backward twice.

    Returns:
        For each loss, whether its backward pass has to retain the graph.

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
                "harmonize at the features with "
                "gh_downstream.fork outside the compiled module, which needs one backward pass"
            )
        retain[name] = bool(shared)
    return retain
