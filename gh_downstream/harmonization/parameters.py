"""Which parameters are shared: given as parameters, as a module, or as name patterns of a model."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import Tensor, nn

from gh_downstream.harmonization.distributed import Group, is_running
from gh_downstream.harmonization.graph import Reach, reach
from gh_downstream.harmonization.sharding import Ranks, check_reduced, find_ranks, stand_ins

Shared: TypeAlias = nn.Module | Tensor | str
"""A module, a parameter, or the name or wildcard of some."""


def listed(shared: Shared | Iterable[Shared]) -> list[Shared]:
    """Return what is shared as a list, which can be read again.

    Raises:
        TypeError: Something else than a parameter, module or name is given.
        ValueError: Nothing is given.
    """
    items = [shared] if isinstance(shared, (nn.Module, Tensor, str)) else list(shared)
    for item in items:
        if isinstance(item, nn.parallel.DistributedDataParallel):
            raise TypeError(
                "give the module inside DistributedDataParallel, as in Harmonizer(..., shared=ddp.module.trunk)"
            )
        if not isinstance(item, (nn.Module, Tensor, str)):
            raise TypeError(
                f"shared takes parameters, modules, and names of them in the model, got {type(item).__name__}"
            )
    if not items:
        raise ValueError("no shared parameters were given")
    return items


def select_parameters(shared: Shared | Iterable[Shared], model: nn.Module | None) -> list[Tensor]:
    """Return the parameters that ``shared`` names, without repetition, for patterns in the order of the model.

    Args:
        shared: Parameters, modules, and patterns: names of modules (``"backbone"``), names of parameters, or wildcards
            over the latter (``"encoder.layer.*.weight"``).
        model: The model whose names the patterns match.

    Raises:
        ValueError: A pattern matches no parameter, nothing is shared, nothing of it is trained, or the model is in a
            ``FullyShardedDataParallel``.
        TypeError: There are patterns but no model, or something else than parameters, modules and patterns.
    """
    items = listed(shared)
    patterns = [item for item in items if isinstance(item, str)]
    if patterns and model is None:
        raise TypeError(
            f"shared names {patterns}, which need the model: Harmonizer(..., shared={patterns}, model=model)"
        )
    selected: list[Tensor] = []
    for item in items:
        if isinstance(item, nn.Module):
            selected += item.parameters()
        elif isinstance(item, Tensor):
            selected.append(item)
    if model is not None:
        selected += _matching(patterns, model)
    selected = list({id(parameter): parameter for parameter in selected}.values())
    if not selected:
        raise ValueError("the shared modules have no parameters")
    if not any(parameter.requires_grad for parameter in selected):
        named = f"the parameters of {', '.join(patterns)}, which are shared," if patterns else "the shared parameters"
        raise ValueError(f"none of {named} requires a gradient, they are frozen: train some, or share others")
    roots = [item for item in [*items, model] if isinstance(item, nn.Module)]
    kinds = {base.__name__ for root in roots for module in root.modules() for base in type(module).__mro__}
    marks = ("_is_flat_param", "_fsdp_flattened")
    if "FullyShardedDataParallel" in kinds or any(hasattr(parameter, mark) for parameter in selected for mark in marks):
        raise ValueError(
            "the shared parameters are in flat ones of FullyShardedDataParallel, where the gradients of single losses "
            "cannot be measured: use torch.distributed.fsdp.fully_shard, or harmonize at the features with "
            "gh_downstream.fork"
        )
    return selected


def _matching(patterns: list[str], model: nn.Module) -> list[Tensor]:
    names = dict(model.named_parameters(remove_duplicate=False))  # a tied weight has several names
    found: set[int] = set()
    for pattern in patterns:
        matched = [n for n in names if n == pattern or n.startswith(f"{pattern}.") or fnmatchcase(n, pattern)]
        if not matched:
            modules = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"pattern {pattern!r} matches no parameter; the model's top-level modules are: {modules}")
        found |= {id(names[name]) for name in matched}
    return [parameter for parameter in model.parameters() if id(parameter) in found]


class Selection:
    """The parameters that are shared, and the others, at each step: layers may be replaced or wrapped meanwhile.

    Args:
        shared: As for :func:`select_parameters`.
        model: The model.

    Attributes:
        given: What was given as shared, as a list.
        shared: The parameters that are shared.
        stand_ins: For what ``fully_shard`` lets the graph of a loss have in place of parameters, by ``id``, these.
    """

    def __init__(self, shared: Shared | Iterable[Shared], model: nn.Module | None) -> None:
        self.given = listed(shared)
        self._model = model
        self._known: set[int] = set()  # The parameters that the losses have reached, by id.
        self._look()
        self._meant = {id(parameter) for parameter in self.trained}

    @property
    def trained(self) -> list[Tensor]:
        """Those that are shared and require a gradient."""
        return [parameter for parameter in self.shared if parameter.requires_grad]

    @property
    def all(self) -> list[Tensor]:
        """The parameters of the model, without one those that are shared."""
        if self._model is None:
            return self.shared
        return [self.stand_ins.get(id(parameter), parameter) for parameter in self._model.parameters()]

    def ranks(self, group: Group) -> Ranks:
        """The ranks of a step that averages over a group."""
        self.stand_ins = stand_ins(self._modules)
        return find_ranks(self.all, group) if is_running() else Ranks(None, [], False)

    def reaches(self, losses: Mapping[str, Tensor]) -> dict[str, Reach]:
        """Walk the graphs of losses, and look again which parameters are shared where they reach something new.

        Raises:
            RuntimeError: What is reached cannot be found out, or ``fully_shard`` would not reduce it.
        """
        check_reduced(self._modules)
        reaches = {task: reach(task, loss, self.stand_ins) for task, loss in losses.items()}
        if self.stand_ins and "_InChunksBackward" in {node.name() for one in reaches.values() for node in one.custom}:
            raise RuntimeError(
                "in_chunks (micro_batch) computes gradients beside the hooks of fully_shard, which would not reduce "
                "them: leave it out, and use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )
        leaves = [leaf for reached in reaches.values() for leaf in reached.leaves.values()]
        reached = {id(leaf) for leaf in leaves if isinstance(leaf, nn.Parameter)}
        if not reached <= self._known:
            self._known |= reached
            self._look()
            self._warn(leaves)
        return reaches

    def _look(self) -> None:
        self.stand_ins = stand_ins(self._modules)
        selected = select_parameters(self.given, self._model)
        self.shared = [self.stand_ins.get(id(parameter), parameter) for parameter in selected]

    @property
    def _modules(self) -> list[nn.Module]:
        return [item for item in [*self.given, self._model] if isinstance(item, nn.Module)]

    def _warn(self, leaves: list[Tensor]) -> None:
        """Warn where the losses reach other parameters than those that were given."""
        there = {id(parameter) for parameter in [*leaves, *(self.all if self._model is not None else [])]}
        given = [item for item in self.given if isinstance(item, Tensor) and id(item) in self._meant]
        if lost := [list(parameter.shape) for parameter in given if id(parameter) not in there]:
            warnings.warn(
                f"no loss reaches {len(lost)} of the {len(given)} parameters given as shared, of shapes {lost[:3]}. If "
                "their layers were replaced, wrapped (LoRA) or sharded, the new parameters are not harmonized: give "
                "modules or names as shared, which follow them, or make the harmonizer afterwards",
                stacklevel=6,
            )

    def warn_of_heads(self, reaches: Mapping[str, Reach]) -> None:
        """Warn where a loss has no parameters to itself but shared ones: its head is in what was given as shared."""
        trained = {id(parameter) for parameter in self.trained}
        reached = {task: {id(leaf) for leaf in found.leaves.values()} for task, found in reaches.items()}
        for task, own in reached.items():
            alone = own.difference(*(other for name, other in reached.items() if name != task))
            if alone and alone <= trained:
                warnings.warn(
                    f"{len(alone)} of the {len(trained)} shared parameters are reached by loss {task!r} alone, which "
                    "has no other parameters to itself: if they are its head, give the trunk alone as shared. They are "
                    "weighed with it, and their gradients count in the measured norms",
                    stacklevel=5,
                )

    def others(self, reaches: Mapping[str, Reach], shared: Sequence[Tensor], several: bool) -> list[Tensor]:
        """The parameters that the losses reach and that are not shared; in several processes, all of the model.

        Raises:
            ValueError: There are several processes, and parameters that are not of the model.
        """
        others = {id(leaf): leaf for reached in reaches.values() for leaf in reached.leaves.values()}
        for parameter in shared:
            others.pop(id(parameter), None)
        if several:
            # The graphs may differ between ranks (a rank without objects, say), the list for a collective may not.
            named = {id(parameter): parameter for parameter in self.all if parameter.requires_grad}
            if any(isinstance(leaf, nn.Parameter) and key not in named for key, leaf in others.items()):
                raise ValueError(
                    "in several processes the harmonizer averages the gradients of all parameters: pass model=, "
                    "holding every parameter that the losses reach (for several modules: torch.nn.ModuleList([...]))"
                )
            ours = {id(parameter) for parameter in shared}
            others = {key: parameter for key, parameter in named.items() if key not in ours}
        return list(others.values())
