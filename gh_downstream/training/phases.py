"""Several updates a step, each of a part of the parameters: adversarial games that alternate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from gh_downstream.harmonization.parameters import select_parameters


@dataclass(frozen=True)
class Phase:
    """One update of a step that has several, such as the three of maximum classifier discrepancy.

    A model whose attribute ``phases`` lists them is called once for each, with ``phase=NAME`` beside the batch, and
    returns the losses of that phase.

    Args:
        name: Name of the phase; the same one may come several times in a step.
        trained: Names or wildcards of the parameters that are updated; the others get no gradient.
        harmonized: Whether its losses are harmonized. Those of other phases are summed.
    """

    name: str
    trained: Sequence[str]
    harmonized: bool = False


@contextmanager
def trained_alone(model: nn.Module, phase: Phase | None) -> Iterator[Sequence[Tensor]]:
    """Let only the parameters of a phase require a gradient within the context; None leaves all as they are.

    Yields:
        The parameters that require a gradient.
    """
    before = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if phase is None:
        yield before
        return
    chosen = {id(parameter) for parameter in select_parameters(phase.trained, model)}
    others = [parameter for parameter in before if id(parameter) not in chosen]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield [parameter for parameter in before if id(parameter) in chosen]
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
