"""The documentation of a key, from the ``Attributes:`` of the dataclasses that configurations fill."""

import contextlib
import dataclasses
import difflib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from gh_downstream.comparison.engines import LOOP_ENGINES


class Key(NamedTuple):
    """A key of a configuration: its full name, with ``NAME`` for what the user names, and what it means.

    The default is as YAML has it; empty where it has to be given, and for a section.
    """

    name: str
    type: str
    default: str
    text: str


def explain(key: str) -> list[tuple[Key, list[str]]]:
    """Return what a key such as ``validation.target.path``, or the end of one, means, with the engines that have it so.

    Raises:
        ValueError: No engine has such a key; the message has those that are most like it.
    """
    found: dict[Key, list[str]] = {}
    keys = list(_keys_by_engine())
    for engine, known in keys:
        any_name = re.escape(known.name).replace("NAME", r"[^.]+")
        if f".{known.name}".endswith(f".{key}") or re.fullmatch(any_name, key):
            found.setdefault(known, []).append(engine)
    if not found:
        similar = difflib.get_close_matches(key, {known.name for _, known in keys}, n=3)
        cure = f"; did you mean {', '.join(similar)}?" if similar else ""
        if key.isupper() and not any(name.startswith("SOLVER.") for name in {known.name for _, known in keys}):
            cure = "; keys of Detectron2's own are known where Detectron2 can be imported"
        raise ValueError(f"no key {key}{cure}")
    return list(found.items())


def keys_of(schema: type, prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a dataclass that its docstring, or that of a base, documents; those of a section after it."""
    hints, texts = typing.get_type_hints(schema), _texts(schema)
    for field in dataclasses.fields(schema):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        section = _section(hint)
        yield Key(name, _type_name(hint), "" if section else _default(field), texts.get(field.name, ""))
        if section:
            yield from keys_of(section, f"{name}.NAME." if typing.get_origin(hint) is dict else f"{name}.")


def _keys_by_engine() -> Iterator[tuple[str, Key]]:
    """Of the engines whose libraries are installed."""
    for engine in LOOP_ENGINES:
        with contextlib.suppress(ImportError):
            yield from ((engine.name, key) for key in keys_of(engine.schema))
    for node, schema in _NODES.items():
        for key in keys_of(pkgutil.resolve_name(schema), f"{node}."):
            yield "detectron2", key._replace(name=key.name.upper())
    with contextlib.suppress(ImportError):
        from gh_downstream.detection.detectron2.config import documented_keys, library_keys

        for name, value, text in [*documented_keys(), *((*item, _LIBRARY) for item in library_keys())]:
            default = "" if isinstance(value, dict) else str(value)
            yield "detectron2", Key(name, type(value).__name__, default, text)


_LIBRARY = (
    "A key of Detectron2's own: https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references"
)
_NODES = {
    "GH": "gh_downstream.harmonization:HarmonizationConfig",
    "DA.IMAGE_INSTANCE": "gh_downstream.detection.alignment:AlignmentConfig",
    "DA.STRONG_WEAK": "gh_downstream.detection.strong_weak:StrongWeakConfig",
}
"""Nodes of Detectron2's configurations that are made of dataclasses; the other keys stand in a table."""

# Four spaces and a name begin an attribute; what is indented further belongs to it.
_ATTRIBUTE = re.compile(r"^ {4}(\w+): ((?:.+\n?)(?: {5,}.*\n?)*)", re.MULTILINE)


def _texts(schema: type) -> dict[str, str]:
    """The text of each attribute, by its name."""
    docs = [(inspect.getdoc(cls) or "").partition("Attributes:\n")[2] for cls in reversed(schema.__mro__)]
    found = (match for doc in docs for match in _ATTRIBUTE.findall(doc.partition("\n\n")[0]))
    return {name: " ".join(text.split()) for name, text in found}


def _section(hint: Any) -> type | None:
    """The dataclass in a type such as ``Section``, ``Section | None`` or ``dict[str, Section]``."""
    if dataclasses.is_dataclass(hint):
        return typing.cast(type, hint)
    return next((found for part in typing.get_args(hint) if (found := _section(part))), None)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else re.sub(r"[\w.]+\.", "", str(hint))


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is dataclasses.MISSING:
        return ""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
