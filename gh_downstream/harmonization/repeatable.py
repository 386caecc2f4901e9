"""Whether a part of a graph may run backward more than once: torch's own functions may, others are tried."""

import math
from collections.abc import Mapping, Set

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from gh_downstream.harmonization.gradients import without_hooks
from gh_downstream.harmonization.graph import Reach

# Python functions of DistributedDataParallel, fully_shard, the hooks of modules and chunks, which save nothing.
_WRAPPERS = (
    "_DDPSinkBackward",
    "RegisterPostBackwardFunctionBackward",
    "BackwardHookFunctionBackward",
    "_InChunksBackward",
)


def check_repeatable(
    losses: Mapping[str, Tensor], reaches: Mapping[str, Reach], again: Mapping[str, Set[Node]], apart: bool
) -> None:
    """Run what has to run backward again twice, with half the gradient the second time, and compare.

    Where all functions are built into torch nothing is run: they leave what they saved as it is. Otherwise the host
    reads the norms of the gradients.

    Args:
        losses: The losses.
        reaches: What each reaches.
        again: Which nodes the backward pass of each leaves to a later one.
        apart: Whether that is the whole of each loss, instead of what they share.

    Raises:
        RuntimeError: The passes do not agree: some function works in place on what it saved.
    """
    if not apart:
        cure = "Take one that does not, or harmonize at the features with gh_downstream.fork, which runs it once"
        _check("what the losses share", set[Node]().union(*again.values()), losses, reaches, cure)
        return
    for task, nodes in again.items():
        cure = "Take a loss that is not fused, or Harmonizer.backward, which runs it once"
        _check(f"loss {task!r}", nodes, {task: losses[task]}, {task: reaches[task]}, cure)


def _check(what: str, nodes: Set[Node], losses: Mapping[str, Tensor], reaches: Mapping[str, Reach], cure: str) -> None:
    """Check some nodes, together with all that they hand gradients on to."""
    names = {node.name() for reached in reaches.values() for node in reached.custom if node in nodes}
    custom = sorted(names.difference(_WRAPPERS))
    if not custom:
        return
    into = [(loss.grad_fn, loss.output_nr) for loss in losses.values()]
    into += [edge for reached in reaches.values() for user in reached.inner - nodes for edge in user.next_functions]
    edges = [GradientEdge(node, k) for node, k in dict.fromkeys(into) if node is not None and node in nodes]
    ends = {node for reached in reaches.values() for node in reached.leaves}
    leaves = [node.variable for node in ends]  # type: ignore[attr-defined]
    if any(leaf.is_meta for leaf in leaves):
        return
    # Multiplied in place, the second is 0.35 times the scale of the loss, which 0.7 keeps from being half for a scale
    # of 2, say. The norms are taken in turn: a gradient may itself be what is saved.
    norms = []
    with without_hooks(leaves):
        for scale in (0.7, 0.35):
            seeds = [_seed(edge, scale) for edge in edges]
            found = torch.autograd.grad(edges, leaves, seeds, retain_graph=True, allow_unused=True)
            norms.append(torch.tensor([gradient.norm().item() for gradient in found if gradient is not None]))
    whole, half = norms
    # What is small beside the rest may be rounding alone; an overflow is for the loss scaler.
    agrees = (half - whole / 2).abs() <= whole / 8
    if (~agrees & (whole.maximum(half) > 1e-3 * whole.max()) & whole.isfinite()).any():
        raise RuntimeError(
            f"{what} gives another gradient when it runs backward a second time, as it has to here: a function in it "
            f"({', '.join(custom)}) works in place on what it saved, as some fused ones do. {cure}"
        )


def _seed(edge: GradientEdge, scale: float) -> Tensor:
    """A gradient of about unit length that no layer takes to zero, as normalization does a constant one."""
    like = edge.node._input_metadata[edge.output_nr]
    n = math.prod(like.shape)
    values = torch.arange(n, dtype=torch.float32, device=like.device).cos() * (scale / max(n, 1) ** 0.5)
    return values.view(like.shape).to(like.dtype)
