"""How the weightings of a comparison are written, and what they are in a configuration.

``sum``, ``gh``, ``gh++`` (exact, lambda 1/2), ``gh++:0.3``, ``gh++:adaptive``, ``gh++:guard``, ``gh++:0.3:guard``,
``gh++:official``, ``gh++:official:0.3``, and the names of TorchJD's weightings (``pcgrad``, ``mgda``, ...).
"""

from __future__ import annotations

from gh_downstream.harmonization import parse_weighting

SAME_UPDATE = (("gh", "pcgrad", "upgrad"), ("sum", "mean"))
"""Weightings that are the same update of two tasks, up to rounding, once the mean is taken times two."""


def weighting_overrides(weighting: str, length: str = "tasks") -> list[str]:
    """Return the overrides of a configuration that a weighting stands for.

    A ``max_weight`` of the configuration goes on to hold for the methods of this package; TorchJD's take none.

    Args:
        weighting: As at the top of this module.
        length: ``harmonization.length``.

    Raises:
        ValueError: The weighting is unknown, or an option is not one of it; the message lists what there is.
    """
    word = weighting if length == "own" else f"{weighting}:length={length}"
    parse_weighting(word)
    return [f"harmonization.weighting={word}"]


def lambda_weightings(lambdas: str) -> list[str]:
    """Return the plain sum and exact GH++ at each lambda, as weightings.

    Args:
        lambdas: ``START:STOP:STEP`` with both ends, such as ``0:1:0.1``, or values with commas between them.

    Raises:
        ValueError: This is not of that form, or a lambda lies outside of [0, 1].
    """
    try:
        if ":" in lambdas:
            start, stop, step = (float(part) for part in lambdas.split(":"))
            values = [start + k * step for k in range(round((stop - start) / step) + 1)]
        else:
            values = [float(part) for part in lambdas.split(",")]
    except (ValueError, ZeroDivisionError, OverflowError):
        values = []
    if not values or not all(-1e-9 < value < 1 + 1e-9 for value in values):
        raise ValueError(
            f"lambdas {lambdas!r}: expected START:STOP:STEP in [0, 1] such as 0:1:0.1, or values as 0,0.5,1"
        )
    return ["sum", *(f"gh++:{round(value, 6) + 0.0:g}" for value in values)]


def lambda_of(weighting: str) -> float | None:
    """Return the lambda of ``gh++:LAMBDA``, None for other weightings; ``gh++`` has 1/2."""
    method, *options = weighting.split(":")
    if method != "gh++" or len(options) > 1:
        return None
    if not options:
        return 0.5
    return float(options[0]) if _is_lambda(options[0]) else None


def _is_lambda(option: str) -> bool:
    try:
        return 0 <= float(option) <= 1
    except ValueError:
        return False
