"""Words of weightings as a comparison takes them."""

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


def lambda_of(word: str) -> float | None:
    """Return the lambda of exact GH++ at a fixed one; None for other weightings and words."""
    weighting = parse_weighting(word) if word.startswith("gh++") else None
    if isinstance(weighting, GHPlusPlus) and weighting.lam != "adaptive" and not weighting.guard:
        return float(weighting.lam)
    return None
