"""What a configuration is made of, each on top of the other: files, the files that these are based on, overrides."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gh_downstream.training.configs import find_config


class ConfigError(ValueError):
    """A configuration cannot be used; the message is one line that names the file and the key."""


class _Loader(yaml.SafeLoader):
    """The scalars of YAML 1.2: ``no``, ``on``, ``010`` and ``1:30`` are words, which a key takes by its own type."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # as those of the base, which are YAML 1.1's

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return super().construct_mapping(node, deep)


for _kind, _pattern in {
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan",
    "null": "|~|null|Null|NULL",
    "merge": "<<",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"({_pattern})$"), None)


def read_layers(path: Path, above: tuple[Path, ...] = ()) -> list[tuple[str, DictConfig]]:
    """Return the content of a file, after that of the files it is based on, each with its path.

    Args:
        path: The file.
        above: The files that are based on it.

    Raises:
        ConfigError: A file is missing, not YAML, or based on itself.
    """
    if path.resolve() in above:
        raise ConfigError(f"{path}: the _base_ files go round in a circle")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file" + (f", named as _base_ in {above[-1]}" if above else ""))
    try:
        content = _loaded(str(path), path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a mapping of keys to values")
    bases = content.pop("_base_", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: _base_ is a file or a list of files, got {bases!r}")
    below = [layer for base in bases for layer in read_layers(_found(base, path.parent), (*above, path.resolve()))]
    return [*below, (str(path), _layer(str(path), content))]


def parse_overrides(overrides: Sequence[str]) -> list[tuple[str, DictConfig]]:
    """Return the content of each ``KEY=VALUE``, with what errors call it.

    Raises:
        ConfigError: One has another form, or its value is not YAML.
    """
    layers = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not key or not equals:
            raise ConfigError(f"override {override!r}: expected KEY=VALUE, such as training.steps=100")
        source = f"override {override!r}"
        content = _loaded(source, value)
        for part in reversed(key.split(".")):
            content = {part: content}
        layers.append((source, _layer(source, content)))
    return layers


def _found(base: str, folder: Path) -> Path:
    try:
        return folder / base if (folder / base).is_file() else find_config(base)
    except FileNotFoundError:
        return folder / base


def _loaded(source: str, text: bytes | str) -> Any:
    """The content of YAML. What is wrong is said without the text: the file may be any, by mistake."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}: not a YAML file: {error.problem}{where}") from None
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"{source}: not a YAML file: it has other characters than text") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None


def _layer(source: str, content: dict[str, Any]) -> DictConfig:
    try:
        for text in _texts(content):
            if "${" in re.sub(r"\$\{[\w.@-]+\}", "", text):
                raise ConfigError(
                    f"{source}: {text}: another key alone can be named so, as ${{output}}; what ${{oc.env:NAME}} says "
                    "would be written into config.yaml"
                )
        return OmegaConf.create(content)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        content = [*content, *content.values()]
    if isinstance(content, list):
        for part in content:
            yield from _texts(part)
    elif isinstance(content, str):
        yield content
