"""Pretrained weights of a network, by file or by torchvision's name for them; never silently others, or none."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum

logger = logging.getLogger(__name__)


def read_pretrained(weights: str, network: str, known: Mapping[str, WeightsEnum]) -> dict[str, Tensor]:
    """Read the tensors of pretrained weights by name, without the prefix that ``DataParallel`` gives them.

    Args:
        weights: A file with a state dict, alone or as ``model`` of a checkpoint; or a name of torchvision's weights,
            which are taken from its cache or downloaded.
        network: The network, as errors call it.
        known: Torchvision's weights of the network by name; empty where it has none.

    Raises:
        FileNotFoundError: There is neither such a file nor such a name, or the download failed.
        ValueError: The file cannot be read safely, or holds something else.
    """
    state = _read_file(weights) if Path(weights).is_file() else _download(weights, network, known)
    return {name.removeprefix("module."): value for name, value in state.items()}


def fill_pretrained(module: nn.Module, state: Mapping[str, Tensor], weights: str, network: str) -> None:
    """Copy tensors into a module, and log how many of its own were found, and which were not.

    A head for another number of classes has another shape, and keeps its initial values.

    Args:
        module: The network.
        state: From :func:`read_pretrained`.
        weights: Where they come from, for the log.
        network: The network, as log and errors call it.

    Raises:
        ValueError: They fill less than half of the module's tensors: they are those of another model.
    """
    own = {n: v for n, v in module.state_dict().items() if not n.endswith("num_batches_tracked")}
    # load_state_dict refuses another shape even if not strict.
    fitting = {n: v for n, v in state.items() if n not in own or v.shape == own[n].shape}
    missing = sorted(set(module.load_state_dict(fitting, strict=False).missing_keys) & set(own))
    loaded = len(own) - len(missing)
    if loaded < len(missing):
        raise ValueError(
            f"weights {weights} fill {loaded} of {len(own)} tensors of {network}: they belong to another model; "
            f"missing are {', '.join(missing[:3])}, ..."
        )
    logger.info("loaded %d of %d tensors of %s from %s", loaded, len(own), network, weights)
    if missing:
        logger.warning("not in %s, left at their initial values: %s", weights, ", ".join(missing))


def _read_file(path: str) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise ValueError(f"weights {path}: not a file of tensors that torch can load safely ({error})") from error
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights {path}: neither a state dict nor a checkpoint with one as 'model'")
    return state


def _download(weights: str, network: str, known: Mapping[str, WeightsEnum]) -> dict[str, Tensor]:
    try:
        entry = known[weights] if weights in known else models.get_weight(weights)
    except (ValueError, KeyError, AttributeError) as error:
        names = f"torchvision's weights of {network} are {', '.join(known)}" if known else f"{network} has no others"
        raise FileNotFoundError(f"weights {weights}: there is no such file; {names}") from error
    try:
        return entry.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise FileNotFoundError(
            f"weights {weights} cannot be downloaded ({error}): put {entry.url} into {folder}, give a file, "
            "or give null to start without"
        ) from error
