"""A weighting and its options as one word, as configurations, command lines, tables and logs write it.

==============================  =======================================================================================
``sum``                         the plain sum
``gh``                          GH
``gh++``, ``gh++:0.3``          exact GH++ with lambda 1/2, or another
``gh++:adaptive``               exact GH++ with lambda by the norms
``gh++:guard``                  exact GH++ with lambda moved to where no task is opposed
``gh++:official``               GH++ as in the authors' published code
``pcgrad``, ``cagrad:c=0.4``    a weighting of TorchJD, with its arguments
==============================  =======================================================================================

Further options follow after colons: ``max_weight=10`` caps the weights, ``length=sum`` and ``length=tasks`` rescale the
update (:class:`~gh_downstream.harmonization.Rescaled`), ``s_min=0.01`` is of exact GH++. ``repr`` of a weighting is its
word.
"""

from __future__ import annotations

from typing import Any

import torch

from gh_downstream.harmonization.length import LENGTHS, with_length
from gh_downstream.harmonization.torchjd import torchjd_names, torchjd_weighting
from gh_downstream.harmonization.weightings import GH, GHPlusPlus, GHPlusPlusOfficial, Sum, Weighting

OWN_WORDS = ("sum", "gh", "gh++", "gh++:LAMBDA", "gh++:adaptive", "gh++:guard", "gh++:official")
"""The words of this package's weightings."""


def parse_weighting(word: str, max_weight: float | None = None) -> Weighting:
    """Return the weighting of a word.

    Args:
        word: As in this module's table.
        max_weight: Largest absolute value of a weight, where the word itself gives none; before ``length``.

    Raises:
        ValueError: The weighting is unknown, or an option is none of it or out of its range; the message lists what
            there is.
        ImportError: It is one of TorchJD, which is not installed.
    """
    name, *parts = str(word).split(":")
    try:
        flags, arguments = _options(parts)
        length = arguments.pop("length", "own")
        arguments.setdefault("max_weight", max_weight)
        if name in ("sum", "gh"):
            weighting = _plain(Sum if name == "sum" else GH, flags, arguments)
        elif name == "gh++":
            weighting = _gh_plus_plus(flags, arguments)
        elif name in torchjd_names():
            if flags:
                raise ValueError(f"{name} has no option {flags[0]!r}; its arguments are given as NAME=VALUE")
            weighting = torchjd_weighting(name, **arguments)
        else:
            raise ValueError(f"there are {', '.join(OWN_WORDS)}, and of TorchJD {', '.join(torchjd_names())}")
        return with_length(weighting, length)
    except (ValueError, TypeError) as error:
        raise ValueError(f"weighting {word!r}: {error}") from None


def checked_weighting(weighting: Weighting | str, tasks: int) -> Weighting:
    """Return a weighting of so many tasks, given as one or as its word.

    Raises:
        ValueError: The word is none, or the weighting cannot weigh so many tasks.
        TypeError: It is a class, or cannot be called.
    """
    if isinstance(weighting, str):
        weighting = parse_weighting(weighting)
    if isinstance(weighting, type) or not callable(weighting):
        given = f"the class {weighting.__name__}" if isinstance(weighting, type) else repr(weighting)
        raise TypeError(
            f"a weighting is a word such as 'gh++', an object such as GHPlusPlus(), or a function of a Gramian; got "
            f"{given}"
        )
    if isinstance(weighting, (GH, GHPlusPlus, GHPlusPlusOfficial)):
        weighting(torch.eye(tasks, dtype=torch.float64))  # Those that cannot weigh so many tasks say so here.
    return weighting


def _options(parts: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Options by position and by name."""
    flags = [part for part in parts if "=" not in part]
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    return flags, {key: value if key == "length" else _value(value) for key, value in named.items()}


def _value(text: str) -> Any:
    """A number, where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"none": None, "true": True, "false": False}.get(text, text)


def _plain(kind: type[Sum] | type[GH], flags: list[str], arguments: dict[str, Any]) -> Weighting:
    if flags or arguments.keys() - {"max_weight"}:
        found = ", ".join([*flags, *(arguments.keys() - {"max_weight"})])
        raise ValueError(f"its options are max_weight=NUMBER and length={'|'.join(LENGTHS)}, got {found}")
    return kind(**arguments)


def _gh_plus_plus(flags: list[str], arguments: dict[str, Any]) -> Weighting:
    official = "official" in flags
    known = {"max_weight"} if official else {"max_weight", "s_min"}
    for flag in flags:
        number = _value(flag)
        if flag == "guard" and not official:
            arguments["guard"] = True
        elif (flag == "adaptive" and not official) or isinstance(number, (int, float)):
            arguments["lam"] = flag if flag == "adaptive" else number
        elif flag != "official":
            raise ValueError(
                "the published GH++ takes a lambda in [0, 1] and nothing else"
                if official
                else f"gh++ takes a lambda in [0, 1], adaptive, guard or official, got {flag!r}"
            )
    if unknown := arguments.keys() - known - {"lam", "guard"}:
        raise ValueError(f"its options are {', '.join(sorted(known))} and length, got {', '.join(unknown)}")
    return GHPlusPlusOfficial(**arguments) if official else GHPlusPlus(**arguments)
