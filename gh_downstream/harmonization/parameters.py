"""Which parameters are shared: given as parameters, as a module, or as name patterns of a model."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import Tensor, nn

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
        ValueError: A pattern matches no parameter, nothing is shared, nothing of it is trained, or a parameter is
            sharded or sparse.
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
    # While a module runs, its parameters are whole: then their modules tell.
    roots = [item for item in [*items, model] if isinstance(item, nn.Module)]
    kinds = {base.__name__ for root in roots for module in root.modules() for base in type(module).__mro__}
    marks = ("full_tensor", "_is_flat_param", "_fsdp_flattened")
    if kinds & {"FSDPModule", "FullyShardedDataParallel"} or any(hasattr(p, m) for p in selected for m in marks):
        raise ValueError(
            "the shared parameters are sharded (FSDP or tensor parallel), where the gradients of single losses cannot "
            "be measured; harmonize at the features with gh_downstream.fork, or use DistributedDataParallel"
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
