"""The checks that settings have in common, each with a message of one line."""

import math
from collections.abc import Collection, Sequence
from numbers import Real


def check_one_of(name: str, value: object, choices: Collection[str]) -> None:
    """Raise a ValueError that lists the choices, where a setting is none of them."""
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}, got {value!r}")


def check_at_least(name: str, value: float | None, least: float) -> None:
    """Raise a ValueError where a setting is no number, NaN or below ``least``; None, a setting that is off, is fine."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or not value >= least):
        raise ValueError(f"{name} must be at least {least}, got {value!r}")


def check_finite(name: str, value: object) -> None:
    """Raise a ValueError where a setting is no finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} has to be a finite number, got {value!r}")


def check_task_names(tasks: Sequence[str]) -> None:
    """Raise a ValueError where there are fewer than two tasks, or two of one name."""
    if isinstance(tasks, str) or len(set(tasks)) != len(tasks) or len(tasks) < 2:
        raise ValueError(f"tasks takes two or more different names, got {tasks!r}")
