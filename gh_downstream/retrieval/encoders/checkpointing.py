"""Activation checkpointing in the towers of other libraries."""

from __future__ import annotations

from typing import Any

from torch import nn

FLAGS = ("gradient_checkpointing", "grad_checkpointing")
"""Attributes by which modules of transformers, and of open_clip and timm, tell that they checkpoint."""


def checkpoint_transformers(model: Any) -> None:
    """Turn on the non-reentrant checkpointing of a model of transformers, under its name in 4 and 5 or in late 5."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def check_checkpointing(tower: nn.Module, name: str) -> None:
    """Raise where a library that was told to checkpoint does not.

    Raises:
        ValueError: No module of the tower checkpoints.
    """
    if not any(getattr(module, flag, False) for module in tower.modules() for flag in FLAGS):
        raise ValueError(
            f"checkpointing: the {name} tower of this model has none in its library; leave checkpointing out, or set "
            "micro_batch"
        )
