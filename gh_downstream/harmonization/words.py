"""A weighting and its options as one word, as configurations, command lines, tables and logs write it.

==============================  =======================================================================================
``sum``                         the plain sum
``fixed:weight=2``              a fixed weight of the first task, the alignment
``gh``                          GH
``gh++``, ``gh++:0.3``          exact GH++ with lambda 1/2, or another
``gh++:adaptive``               exact GH++ with lambda by the norms
``gh++:guard``                  exact GH++ with lambda moved to where no task is opposed
``gh++:official``               GH++ as in the authors' published code
``pcgrad``, ``cagrad:c=0.4``    a weighting of TorchJD, with its arguments
``famo``, ``stch:mu=0.1``       a scalarization of TorchJD, which looks at the losses, with its arguments
==============================  =======================================================================================

Further options follow after colons: ``max_weight=10`` caps the weights, ``s_min=0.01`` is of exact GH++. ``length=sum``
gives the update the length of the plain sum, ``length=tasks`` multiplies the weights of those of TorchJD's methods that
change the mean of the gradients (:class:`~gh_downstream.harmonization.Rescaled`). ``repr`` of a weighting is its word.
"""

from dataclasses import fields
from functools import cache
from typing import Any

import torch

from gh_downstream.harmonization.checks import check_needs_no_losses, check_one_of, check_weighting
from gh_downstream.harmonization.length import Rescaled
from gh_downstream.harmonization.scalarizations import SCALARIZATIONS, Scalarization
from gh_downstream.harmonization.torchjd import TORCHJD, torchjd_weighting
from gh_downstream.harmonization.weightings import GH, Fixed, GHPlusPlus, GHPlusPlusOfficial, Sum, Weighting

_OWN: dict[str, tuple[type[Any], str]] = {
    "sum": (Sum, "sum takes max_weight=NUMBER"),
    "fixed": (Fixed, "fixed takes weight=NUMBER, that of the first task, and max_weight=NUMBER"),
    "gh": (GH, "gh takes max_weight=NUMBER"),
    "gh++": (GHPlusPlus, "gh++ takes a lambda in [0, 1], adaptive, guard, official, s_min=NUMBER, max_weight=NUMBER"),
    "gh++:official": (GHPlusPlusOfficial, "the published GH++ takes a lambda in [0, 1] and max_weight=NUMBER"),
}
_WORDS = "sum, gh, gh++, gh++:LAMBDA, gh++:adaptive, gh++:guard, gh++:official, fixed:weight=NUMBER"
_AVERAGES = (
    *("alignedmtl", "cagrad", "dualproj", "imtlg", "mean", "mgda", "upgrad"),
    *("famo", "geometricmean", "rlw", "stch", "uw"),
)
"""TorchJD's weightings that change the mean of the gradients where others change their sum."""


def parse_weighting(word: str, max_weight: float | None = None) -> Weighting:
    """Return the weighting of a word.

    Args:
        word: As in this module's table.
        max_weight: Largest absolute value of a weight, where the word itself gives none; before ``length``.

    Raises:
        ValueError: The weighting is unknown, or an option is none of it, out of its range or given twice; the message
            lists what there is.
        ImportError: It is one of TorchJD, which is not installed.
    """
    name, *parts = str(word).split(":")
    try:
        given = dict(map(_option, parts))
        if len(given) < len(parts):
            raise ValueError(f"an option is given twice, got {', '.join(map(repr, parts))}")
        options = {"max_weight": max_weight} | given
        length = options.pop("length", "own")
        check_one_of("length", length, ("own", "tasks", "sum"))
        if name in TORCHJD:
            weighting: Weighting = torchjd_weighting(name, **options)
        elif name in SCALARIZATIONS:
            weighting = Scalarization(name, **options)
        elif name in _OWN:
            kind, takes = _OWN["gh++:official" if name == "gh++" and options.pop("official", False) else name]
            if options.keys() - {field.name for field in fields(kind)}:
                raise ValueError(f"{takes} and length=tasks|sum, got {', '.join(map(repr, parts))}")
            weighting = kind(**options)
        else:
            raise ValueError(f"there are {_WORDS}, and of TorchJD {', '.join([*TORCHJD, *SCALARIZATIONS])}")
        # The sum has its own length, and stays what the trainers take their plain step for.
        rescaled = (length == "sum" and name != "sum") or (length == "tasks" and name in _AVERAGES)
        return Rescaled(weighting, length) if rescaled else weighting
    except (ValueError, TypeError) as error:
        raise ValueError(f"weighting {word!r}: {error}") from None


def checked_weighting(weighting: Weighting | str, tasks: int, *, losses: bool = False) -> Weighting:
    """Return a weighting of so many tasks, given as one or as its word.

    Args:
        weighting: The weighting.
        tasks: Their number.
        losses: Whether one that looks at the losses can be served.

    Raises:
        ValueError: The word is none, or the weighting cannot weigh so many tasks, or looks at losses.
        TypeError: It is a class, cannot be called, or is an aggregator of TorchJD.
    """
    if isinstance(weighting, str):
        weighting = parse_weighting(weighting)
    check_weighting(weighting)
    if not losses:
        check_needs_no_losses(weighting)
    inner = weighting
    while isinstance(inner, Rescaled):
        inner = inner.weighting
    if isinstance(inner, (GHPlusPlus, GHPlusPlusOfficial)):
        _check_tasks(inner, tasks)
    return weighting


@cache  # A fork asks at each step.
def _check_tasks(weighting: GHPlusPlus | GHPlusPlusOfficial, tasks: int) -> None:
    """Those that cannot weigh so many tasks say so here."""
    weighting(torch.eye(tasks, dtype=torch.float64))


def _option(part: str) -> tuple[str, Any]:
    """Name and value of an option; lambda stands without its name, and what is on without a value."""
    name, equals, text = part.partition("=")
    value = _value(text if equals else part)
    if equals:
        if name in ("guard", "official"):
            check_one_of(name, text, ("true", "false"))
        return name, value
    return ("lam", value) if part == "adaptive" or type(value) in (int, float) else (part, True)


def _value(text: str) -> Any:
    """A number, where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"none": None, "true": True, "false": False}.get(text, text)
