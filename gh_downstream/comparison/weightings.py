"""Words of weightings as a comparison takes them."""

import math
from collections.abc import Sequence

import numpy as np

from gh_downstream.harmonization import GHPlusPlus, parse_weighting


def in_length(word: str, length: str) -> str:
    """Return the word of a weighting with the length of its updates; one of its own stays.

    The length is ``tasks`` or ``sum``, see :class:`~gh_downstream.harmonization.Rescaled`.

    Raises:
        ValueError: The weighting is unknown, or an option is not one of it; the message lists what there is.
        ImportError: It is one of TorchJD, which is not installed.
    """
    parse_weighting(word)  # An error names the word as it was given.
    return repr(parse_weighting(word if ":length=" in word else f"{word}:length={length}"))


def lambda_weightings(lambdas: str) -> list[str]:
    """Return the plain sum and exact GH++ at each lambda of ``START:STOP:STEP``, with both ends, or of ``0,0.5,1``.

    Raises:
        ValueError: This is not of that form, or a lambda lies outside of [0, 1].
    """
    try:
        if ":" in lambdas:
            start, stop, step = (float(part) for part in lambdas.split(":"))
            steps = round((stop - start) / step)
            values = [start + k * step for k in range(steps + 1)] if steps <= 1000 else []
        else:
            values = [float(part) for part in lambdas.split(",")]
    except (ValueError, ZeroDivisionError, OverflowError):
        values = []
    if not values or not all(-1e-9 < value < 1 + 1e-9 for value in values):
        raise ValueError(
            f"lambdas {lambdas!r}: expected START:STOP:STEP in [0, 1] such as 0:1:0.1, or values as 0,0.5,1"
        )
    return ["sum", *(f"gh++:{round(value, 6) + 0.0:g}" for value in values)]


def is_fixed(word: str) -> bool:
    """Whether this is the word of a fixed weight of the first task, or of the plain sum, whose weight is 1."""
    return word.split(":")[0] in ("sum", "fixed")


def sweep_weightings(sweep: str, weightings: Sequence[str]) -> list[str]:
    """Return fixed weights of ``LOWEST:HIGHEST``, as many as there are weightings that are not fixed.

    They are evenly spaced on a logarithmic scale, with both ends; 1 is left out, which is the plain sum.

    Raises:
        ValueError: This is not of that form, or there is no weighting beside which to tune, or not the plain sum.
    """
    count = sum(not is_fixed(word) for word in weightings)
    if not count or "sum" not in weightings:
        raise ValueError(
            f"a sweep of fixed weights has as many as there are weightings beside sum: name sum and others, got "
            f"{', '.join(weightings)}"
        )
    lowest, _, highest = sweep.partition(":")
    try:
        ends = float(lowest), float(highest)
    except ValueError:
        ends = math.nan, math.nan
    if not 0 < ends[0] < ends[1] < math.inf:
        raise ValueError(f"sweep {sweep!r}: expected LOWEST:HIGHEST of weights above 0, such as 0.1:10")
    values = [float(f"{value:.3g}") for value in np.geomspace(*ends, count)]
    return [repr(parse_weighting(f"fixed:weight={value}")) for value in values if value != 1]


def lambda_of(word: str) -> float | None:
    """Return the lambda of exact GH++ at a fixed one; None for other weightings and words."""
    weighting = parse_weighting(word) if word.startswith("gh++") else None
    if isinstance(weighting, GHPlusPlus) and weighting.lam != "adaptive" and not weighting.guard:
        return float(weighting.lam)
    return None
