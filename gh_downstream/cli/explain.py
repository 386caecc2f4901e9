"""The documentation of a key, from the ``Attributes:`` of the dataclasses that configurations fill."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

from gh_downstream.comparison.engines import LOOP_ENGINES


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a configuration.

    Attributes:
        name: Its full name, with ``NAME`` for what the user names, as in ``validation.NAME.path``.
        type: Its type, as Python writes it.
        default: Its default as YAML would have it; empty where it has to be given, and for a section.
        text: What it means.
    """

    name: str
    type: str
    default: str
    text: str


def explain(key: str) -> list[tuple[Key, list[str]]]:
    """Return what a key means, with the engines that have it so.

    Args:
        key: A full key such as ``optimizer.lr``, ``validation.target.path`` or ``GH.WEIGHTING``, or the end of one.

    Raises:
        ValueError: No engine has such a key; the message has those that are most like it.
    """
    found: dict[Key, list[str]] = {}
    names = set()
    for engine, known in _keys_by_engine():
        names.add(known.name)
        if re.fullmatch(rf"(.*\.)?{re.escape(key)}", known.name) or re.fullmatch(_pattern(known.name), key):
            found.setdefault(known, []).append(engine)
    if not found:
        similar = difflib.get_close_matches(key, names, n=3)
        raise ValueError(f"no key {key}" + (f"; did you mean {', '.join(similar)}?" if similar else ""))
    return list(found.items())


def keys_of(schema: type, prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a dataclass, those of a section after it.

    Args:
        schema: The dataclass; its attributes are documented in its docstring, or in that of its base.
        prefix: What stands before each name.
    """
    hints = typing.get_type_hints(schema)
    texts = _texts(schema)
    for field in dataclasses.fields(schema):
        hint = hints[field.name]
        name = f"{prefix}{field.name}"
        section = _section(hint)
        yield Key(name, _type_name(hint), "" if section else _default(field), texts.get(field.name, ""))
        if section:
            yield from keys_of(section, f"{name}.NAME." if typing.get_origin(hint) is dict else f"{name}.")


def _keys_by_engine() -> Iterator[tuple[str, Key]]:
    """Of the engines whose libraries are installed."""
    for engine in LOOP_ENGINES:
        try:
            schema = engine.schema
        except ImportError:
            continue
        for key in keys_of(schema):
            yield engine.name, key
    for key in _keys_of_detectron2():
        yield "detectron2", key


def _keys_of_detectron2() -> Iterator[Key]:
    """Those of this package that are made of dataclasses, and those in a table, where there is Detectron2."""
    from gh_downstream.detection.alignment import AlignmentConfig
    from gh_downstream.detection.strong_weak import StrongWeakConfig
    from gh_downstream.harmonization import HarmonizationConfig

    for node, schema in {
        "GH": HarmonizationConfig,
        "DA.IMAGE_INSTANCE": AlignmentConfig,
        "DA.STRONG_WEAK": StrongWeakConfig,
    }.items():
        for key in keys_of(schema, f"{node}."):
            yield dataclasses.replace(key, name=key.name.upper())
    try:
        from gh_downstream.detection.detectron2.config import add_adaptation_config
    except ImportError:
        return
    from detectron2.config import get_cfg

    add_adaptation_config(cfg := get_cfg())
    for name, text in _TABLE_ROW.findall(add_adaptation_config.__doc__ or ""):
        value = functools.reduce(lambda node, part: node[part], name.split("."), cfg)
        yield Key(name, type(value).__name__, "" if isinstance(value, dict) else str(value), " ".join(text.split()))


# A key in double backquotes, and its text, whose further lines are indented as far as the first.
_TABLE_ROW = re.compile(r"^ *``([\w.]+)``  +((?:.+\n)(?: {33,}.*\n)*)", re.MULTILINE)


def _pattern(name: str) -> str:
    return r"[^.]+".join(re.escape(part) for part in name.split("NAME"))


# Four spaces and a name begin an attribute; what is indented further belongs to it.
_ATTRIBUTE = re.compile(r"^ {4}(\w+): ((?:.+\n?)(?: {5,}.*\n?)*)", re.MULTILINE)


def _texts(schema: type) -> dict[str, str]:
    """The text of each attribute, by its name."""
    texts: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        _, _, section = (inspect.getdoc(cls) or "").partition("Attributes:\n")
        for name, text in _ATTRIBUTE.findall(section.partition("\n\n")[0]):
            texts[name] = " ".join(text.split())
    return texts


def _section(hint: Any) -> type | None:
    """The dataclass in a type such as ``Section``, ``Section | None`` or ``dict[str, Section]``."""
    if dataclasses.is_dataclass(hint):
        return typing.cast(type, hint)
    return next((found for part in typing.get_args(hint) if (found := _section(part))), None)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else re.sub(r"[\w.]+\.", "", str(hint))


def _default(field: dataclasses.Field[Any]) -> str:
    import yaml

    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return ""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
