"""Parameters that lie in slices on several ranks: of ``fully_shard``, or of tensor parallelism with ``DTensor``."""

import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from gh_downstream.harmonization.distributed import Group, is_running, ranks_of, scatters, world_size


class Ranks(NamedTuple):
    """The ranks of a step.

    Attributes:
        group: Those that average gradients.
        groups: Those that take the same weights, reached over one group after the other; none in a single process.
        sharded: Whether they have slices of parameters.
    """

    group: Group
    groups: list[Group]
    sharded: bool


class Spread(NamedTuple):
    """How the gradients of parameters are spread over the ranks when they are measured.

    Attributes:
        averaged: Whether the harmonizer averages them first.
        scattered: Whether a rank gets its own part of the average alone.
        slices: The number of ranks that measure different entries.
    """

    averaged: bool
    scattered: bool
    slices: int


def spread(parameter: Any, group: Group, averaged: bool) -> Spread:
    """Find out how the gradient of a parameter is spread where those are averaged over a group, or are not."""
    sizes = [
        parameter.device_mesh.size(k)
        for k, placement in enumerate(getattr(parameter, "placements", ()))
        if not placement.is_replicate()
    ]
    averaged = averaged and not is_reduced(parameter, group)
    scattered = averaged and scatters(parameter.device, group)
    return Spread(averaged, scattered, math.prod(sizes) * (world_size(group) if averaged else 1))


def is_reduced(parameter: Any, group: Group) -> bool:
    """Whether the gradient of a parameter is averaged over a group when autograd is done, as ``fully_shard`` does it.

    Raises:
        ValueError: It is for a part of the group.
    """
    if not hasattr(parameter, "device_mesh"):
        return False
    within, ranks = set(parameter.device_mesh.mesh.flatten().tolist()), set(ranks_of(group))
    if not ranks <= within and len(ranks & within) > 1:
        raise ValueError(
            f"a parameter is sharded over the ranks {sorted(within)}, and gradients are averaged over {sorted(ranks)}: "
            "give process_group= the group that data parallelism averages in, such as mesh.get_group('dp')"
        )
    return ranks <= within


def find_ranks(parameters: Iterable[Any], group: Group) -> Ranks:
    """Find the ranks of a step that averages over a group, with those that have slices of the same parameters."""
    # In the same order on all ranks.
    meshes = dict.fromkeys(parameter.device_mesh for parameter in parameters if hasattr(parameter, "device_mesh"))
    groups = {tuple(ranks_of(one)): one for one in [group, *(one for mesh in meshes for one in mesh.get_all_groups())]}
    largest = [groups[a] for a in groups if len(a) > 1 and not any(set(a) < set(b) for b in groups)]
    return Ranks(group, largest, bool(meshes))


def local(tensor: Any) -> Tensor:
    """The slice of a tensor that is on this rank, a view; a tensor that is in none itself."""
    return tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor


def slice_of(gradient: Any, parameter: Any) -> Tensor | None:
    """The slice of a gradient for this rank's slice of the parameter: autograd may leave sums still to be made."""
    if hasattr(gradient, "placements") and gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)
    return None if gradient is None else local(gradient)


def from_slice(part: Tensor, parameter: Any) -> Tensor:
    """The gradient of which this rank has a slice."""
    if not hasattr(parameter, "placements"):
        return part
    like = {"shape": parameter.shape, "stride": parameter.stride()}
    return type(parameter).from_local(part, parameter.device_mesh, parameter.placements, run_check=False, **like)


def stand_ins(modules: Iterable[nn.Module]) -> dict[int, nn.Parameter]:
    """For what ``fully_shard`` has modules use in place of their parameters, by ``id``, these."""
    found: dict[int, nn.Parameter] = {}
    for parameter in (parameter for group in _groups(modules) for parameter in group.fsdp_params):
        for name in ("_unsharded_param", "_sharded_post_forward_param"):
            found[id(getattr(parameter, name, None))] = parameter.sharded_param
    return found


def check_reduced(modules: Iterable[nn.Module]) -> None:
    """Raise a RuntimeError where ``fully_shard`` is to leave gradients as they are on each rank."""
    if not all(group.reduce_grads and group.all_reduce_grads for group in _groups(modules)):
        raise RuntimeError(
            "fully_shard is not to reduce the gradients, which can then not be measured: call "
            "set_requires_gradient_sync(True), or set_requires_all_reduce(True), on the model"
        )


def _groups(modules: Iterable[nn.Module]) -> Iterator[Any]:
    """The groups of parameters of ``fully_shard``; torch has no other way to them."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if kind is None or not is_running():
        return
    for module in (module for root in modules for module in root.modules() if isinstance(module, kind)):
        state: Any = module._get_fsdp_state()
        found = state._fsdp_param_groups if hasattr(state, "_fsdp_param_groups") else [state._fsdp_param_group]
        yield from (group for group in found if group is not None)
