"""Which parameters are shared: given as parameters, as a module, or as name patterns of a model."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn


def select_parameters(shared: nn.Module | str | Iterable[Tensor | str], model: nn.Module | None) -> list[Tensor]:
    """Return the parameters that ``shared`` names, without repetition, for patterns in the order of the model.

    Args:
        shared: Parameters, a module, or patterns: names of modules (``"backbone"``), names of parameters, or wildcards
            over the latter (``"encoder.layer.*.weight"``).
        model: The model whose names the patterns match.

    Raises:
        ValueError: A pattern matches no parameter, nothing is shared, nothing of it is trained, or a parameter is
            sharded.
        TypeError: There are patterns but no model, or something else than a parameter is given.
    """
    if isinstance(shared, nn.parallel.DistributedDataParallel):
        raise TypeError(
            "give the module inside DistributedDataParallel, as in Harmonizer(..., shared=ddp.module.trunk)"
        )
    given = shared.parameters() if isinstance(shared, nn.Module) else shared
    items: list[Any] = [given] if isinstance(given, (str, Tensor)) else [*given]
    if not items:
        raise ValueError("no shared parameters were given")
    if all(isinstance(item, Tensor) for item in items):
        selected = list({id(item): item for item in items}.values())
    elif model is not None and all(isinstance(item, str) for item in items):
        selected = _matching(items, model)
    else:
        raise TypeError(
            "shared takes parameters, a module, or patterns of parameter names, which need the model: "
            "Harmonizer(..., shared=[...], model=model)"
        )
    if not any(parameter.requires_grad for parameter in selected):
        raise ValueError("none of the shared parameters requires a gradient: are they frozen?")
    if any(hasattr(p, mark) for p in selected for mark in ("full_tensor", "_is_flat_param", "_fsdp_flattened")):
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
