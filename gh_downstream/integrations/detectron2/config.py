"""The node ``GH`` of a Detectron2 config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from detectron2.config import CfgNode

from gh_downstream.integrations.detectron2.settings import HarmonizationSettings


def add_gh_config(cfg: CfgNode) -> None:
    """Add the node ``GH`` with every setting of :class:`HarmonizationSettings`, in capitals, and its default.

    ::

        cfg = get_cfg()
        add_gh_config(cfg)
        cfg.merge_from_file(args.config_file)  # GH: {METHOD: gh++, LAMBDA: adaptive}

    Args:
        cfg: The config, not frozen; harmonization is off until ``GH.METHOD`` is set.
    """
    cfg.GH = CfgNode()
    defaults = HarmonizationSettings(method="none")
    for name in _KEYS:
        value = getattr(defaults, name)
        cfg.GH[_KEYS[name]] = list(value) if isinstance(value, tuple) else value
    tasks = {task.upper(): list(patterns) for task, patterns in defaults.tasks.items()}
    cfg.GH.TASKS = CfgNode(tasks, new_allowed=True)


def settings_of(cfg: CfgNode) -> HarmonizationSettings:
    """Return the settings that a config holds.

    Raises:
        ValueError: The config has no node ``GH``, or a setting in it cannot be used.
    """
    if not isinstance(cfg.get("GH"), Mapping):
        raise ValueError("the config has no node GH: call add_gh_config(cfg) before its file is merged")
    values = {name: cfg.GH[key] for name, key in _KEYS.items()}
    return HarmonizationSettings(**values | {"tasks": {task.lower(): p for task, p in cfg.GH.TASKS.items()}})


_KEYS = {f.name: {"lam": "LAMBDA"}.get(f.name, f.name.upper()) for f in fields(HarmonizationSettings)}
