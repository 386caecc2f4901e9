"""Pretrained weights of a network, by file or by torchvision's name for them; never silently others, or none."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchvision import models
from torchvision.models import WeightsEnum

from gh_downstream.training.checkpoint import read_weights


def read_pretrained(weights: str, network: str, known: Mapping[str, WeightsEnum]) -> dict[str, Tensor]:
    """Read the tensors of pretrained weights by name, without the prefix that ``DataParallel`` gives them.

    Args:
        weights: A file, as of :func:`~gh_downstream.training.checkpoint.read_weights`; or a name of torchvision's
            weights, which are taken from its cache or downloaded.
        network: The network, as errors call it.
        known: Torchvision's weights of the network by name; empty where it has none.

    Raises:
        FileNotFoundError: There is neither such a file nor such a name, or the download failed.
        CheckpointError: The file cannot be read safely, or holds something else.
    """
    state = read_weights(Path(weights)) if Path(weights).is_file() else _download(weights, network, known)
    return {name.removeprefix("module."): value for name, value in state.items()}


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
