"""The checks that settings have in common, each with a message of one line."""

import math
import operator
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any

_BOUNDS = {
    ">=": (operator.ge, "at least"),
    ">": (operator.gt, "above"),
    "<=": (operator.le, "at most"),
    "<": (operator.lt, "below"),
}


def check_one_of(name: str, value: object, choices: Collection[str]) -> None:
    """Raise a ValueError that lists the choices, where a setting is none of them."""
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}, got {value!r}")


def check_numbers(settings: object, default: str = ">= 0", /, **ranges: str) -> None:
    """Check that the numbers of a configuration are finite and in their ranges.

    Args:
        settings: A dataclass, a node of Detectron2's, or another mapping of names to values. The numbers in lists and
            mappings of numbers are checked too, but not what is typed as Any, and other dataclasses, which check
            themselves.
        default: The range of numbers that are not named.
        ranges: The range of a number by its name, such as ``lr="> 0"`` or ``ema="> 0, < 1"``; an empty one is that of
            all finite numbers; ``"whole, >= 1"`` takes no fractions, ``"one, >= 1"`` no lists and mappings.

    Raises:
        ValueError: A number is not finite or out of its range, or something else stands where a range or the type of
            an attribute wants a number (None, a setting that is off, is fine); the message names it.
    """
    typed = fields(settings) if is_dataclass(settings) else ()
    free = {field.name for field in typed if re.search(r"\bAny\b", str(field.type))}
    kinds = {field.name: re.findall(r"\b(int|float)\b", str(field.type)) for field in typed}
    numbers = {*ranges, *(name for name, kind in kinds.items() if kind)}
    whole = {name for name, kind in kinds.items() if kind and "float" not in kind}
    whole |= {name for name, wanted in ranges.items() if "whole" in wanted}
    single = {field.name for field in typed if "[" not in str(field.type)}
    single |= {name for name, wanted in ranges.items() if "one" in wanted}
    values = dict(settings if isinstance(settings, Mapping) else vars(settings))
    for name, setting in ((name, value) for name, value in values.items() if name not in free):
        bounds = re.findall(r"([<>]=?)\s*([-+.\w]+)", ranges.get(name, default))
        wanted = " and ".join(f"{_BOUNDS[sign][1]} {bound}" for sign, bound in bounds)
        for key, value in [(name, setting)] if name in single else _leaves(name, setting):
            if not isinstance(value, Real) or isinstance(value, bool):
                if name in numbers and value is not None:
                    raise ValueError(f"{key} must be a number {wanted}".rstrip() + f", got {value!r}")
            elif name in whole and not isinstance(value, Integral):
                raise ValueError(f"{key} must be a whole number, got {value!r}")
            elif not -math.inf < value < math.inf:  # type: ignore[operator]
                raise ValueError(f"{key} must be finite, got {value!r}")
            elif not all(_BOUNDS[sign][0](value, float(bound)) for sign, bound in bounds):
                raise ValueError(f"{key} must be {wanted}, got {value!r}")


def check_at_least(name: str, value: float | None, least: float) -> None:
    """Raise a ValueError where a setting is no finite number of at least ``least``; None, one that is off, is fine."""
    check_numbers({name: value}, **{name: f"one, >= {least}"})


def check_task_names(tasks: Sequence[str]) -> None:
    """Raise a ValueError where there are fewer than two tasks, or two of one name."""
    if isinstance(tasks, str) or len(set(tasks)) != len(tasks) or len(tasks) < 2:
        raise ValueError(f"tasks takes two or more different names, got {tasks!r}")


def numbers_by_task(name: str, given: Mapping[str, float] | None, tasks: Sequence[str]) -> dict[str, float]:
    """Return a number for each task, 1 where none is given; a ValueError names what is no task, or not finite."""
    numbers = {task: number for task, number in (given or {}).items() if number is not None}
    for task in numbers:
        check_one_of(f"a task of {name}", task, tasks)
    check_numbers({name: numbers}, **{name: ""})
    return dict.fromkeys(tasks, 1.0) | numbers


def check_weighting(weighting: object) -> None:
    """Raise a TypeError where something is no weighting but a class, or works on the gradients themselves."""
    bases = {f"{base.__module__.split('.')[0]}.{base.__name__}" for base in type(weighting).__mro__}
    if "torchjd.Aggregator" in bases:
        name = type(weighting).__name__
        raise TypeError(f"{name} of TorchJD aggregates gradients: give {name}().gramian_weighting, or its word")
    if isinstance(weighting, type) or not callable(weighting):
        given = f"the class {weighting.__name__}" if isinstance(weighting, type) else repr(weighting)
        raise TypeError(
            f"a weighting is a word such as 'gh++', an object such as GHPlusPlus(), or a function of a Gramian; got "
            f"{given}"
        )


def takes_losses(weighting: object) -> bool:
    """Whether a weighting is called with the losses, ``weighting(gramian, losses)``: numbers by task, of all ranks."""
    return getattr(weighting, "takes_losses", False)


def check_needs_no_losses(weighting: object) -> None:
    """Raise a ValueError where a weighting looks at the losses, for a caller that sees gradients alone."""
    if takes_losses(weighting):
        raise ValueError(
            f"weighting {weighting!r} looks at the losses, which are not seen here: harmonize the parameters, by "
            "Harmonizer or measure=parameters, or take a weighting that looks at gradients"
        )


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values in lists and mappings, with their keys."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(f"{key}.{name}", part)
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from _leaves(f"{key}[{index}]", part)
    else:
        yield key, value
