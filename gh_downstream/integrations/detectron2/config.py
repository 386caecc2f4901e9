"""The node ``GH`` of a Detectron2 config."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields

from detectron2.config import CfgNode

from gh_downstream.harmonization import HarmonizationConfig

LOG_PERIOD = 20
"""Iterations between two entries of ``gh/*``; Detectron2's writers have the same period."""


def add_gh_config(cfg: CfgNode) -> None:
    """Add the node ``GH``: every setting of :class:`~gh_downstream.harmonization.HarmonizationConfig` in capitals, with
    its default, and ``LOG_PERIOD``.

    ::

        cfg = get_cfg()
        add_gh_config(cfg)
        cfg.merge_from_file(args.config_file)  # GH: {WEIGHTING: "gh++:adaptive"}

    Args:
        cfg: The config, not frozen; harmonization is off until ``GH.WEIGHTING`` is set.
    """
    cfg.GH = CfgNode({name.upper(): value for name, value in asdict(HarmonizationConfig()).items() if name != "tasks"})
    cfg.GH.TASKS = CfgNode(new_allowed=True)
    cfg.GH.LOG_PERIOD = LOG_PERIOD


def settings_of(cfg: CfgNode) -> HarmonizationConfig:
    """Return the settings that a config holds.

    Raises:
        ValueError: The config has no node ``GH``, or a setting in it cannot be used.
    """
    if not isinstance(cfg.get("GH"), Mapping):
        raise ValueError("the config has no node GH: call add_gh_config(cfg) before its file is merged")
    values = {f.name: cfg.GH[f.name.upper()] for f in fields(HarmonizationConfig)}
    values |= {"shared": list(cfg.GH.SHARED), "tasks": {task.lower(): list(p) for task, p in cfg.GH.TASKS.items()}}
    try:
        return HarmonizationConfig(**values)
    except ValueError as error:
        raise ValueError(with_keys(str(error), "GH", values)) from None


def with_keys(message: str, node: str, names: Iterable[str]) -> str:
    """Return a message on settings with the keys of a node of the config in the place of their names.

    Args:
        message: Of an error.
        node: Such as ``GH``.
        names: Of the settings. One that is a word of English too is replaced where the message is on the setting.
    """
    words = "|".join(
        name if "_" in name else rf"{name}(?=[=:.]| must| is| takes| '| None|(?:, \w+)* cannot)" for name in names
    )
    return re.sub(rf"(?<![\w.])(?:{words})(?!\w)(?:\.\w+)?", lambda match: f"{node}.{match[0].upper()}", message)
