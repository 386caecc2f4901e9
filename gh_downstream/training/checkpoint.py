"""Checkpoints that are written whole or not at all, and read without running what is in them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gh_downstream.files import atomic_file

logger = logging.getLogger(__name__)

_FORMAT = "gh_downstream.training 1"


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit; the message names the file and what to do."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        path: File to write.
        state: Tensors and plain Python values, nested in dictionaries and lists; the weights under ``"model"``,
            averaged ones under ``"average"``.
    """
    with atomic_file(path) as file:
        torch.save({"format": _FORMAT, **state}, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of :func:`save_checkpoint` onto the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, or is something else.
    """
    content = _read(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version of gh_downstream")
    return content


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Start a model from the weights of an earlier stage; what was not found is logged.

    Args:
        model: Its parameters and buffers are overwritten where the file has one of the same name and shape.
        path: A checkpoint, whose averaged weights are taken where it has them, or a state dict that ``torch.save`` has
            written.

    Returns:
        Names of the model that the file lacks, or has in another shape; these keep their values.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, holds no weights, or has less than half of those of the model.
    """
    content = _read(path)
    found, averaged = content, False
    if isinstance(content, dict) and content.get("format") == _FORMAT:
        averaged = content.get("average") is not None
        found = content.get("average" if averaged else "model")
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} is neither a checkpoint nor a state dict")
    own = model.state_dict()
    fitting = {name: found[name] for name, value in own.items() if name in found and found[name].shape == value.shape}
    missing = [name for name in own if name not in fitting]
    unused = [name for name in found if name not in fitting]
    if 2 * len(missing) > len(own):
        raise CheckpointError(f"{path} lacks {len(missing)} of the model's {len(own)} tensors: {_listed(missing)}")
    model.load_state_dict(fitting, strict=False)
    kind = " averaged" if averaged else ""
    logger.info("%s: loaded %d%s of the model's %d tensors", path, len(fitting), kind, len(own))
    if missing:
        logger.warning("%s lacks %s: they keep their initial values", path, _listed(missing))
    if unused:
        logger.warning("%s has %s, which the model lacks or has in another shape", path, _listed(unused))
    return missing


def load_all_weights(model: nn.Module, path: Path, prefix: str = "") -> None:
    """Take the weights of a trained model, to evaluate or to export it; other arguments as of :func:`load_weights`.

    Args:
        prefix: Beginning of the names that the file has to have; the rest of the model is not used.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, or lacks one of these tensors or has it in another shape.
    """
    missing = [name for name in load_weights(model, path) if name.startswith(prefix)]
    if missing:
        raise CheckpointError(
            f"{path} lacks {_listed(missing)} of the model, or has other shapes: it belongs to another configuration"
        )


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"no such checkpoint: {path}") from None
    except Exception as error:  # A damaged file raises whatever its bytes happen to lead to.
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint; restore it, or delete it to start anew"
        ) from error


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
