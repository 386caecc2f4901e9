"""Pretrained weights of a network, by file, by package or by torchvision's name; never silently others, or none."""

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor
from torchvision import models
from torchvision.models import WeightsEnum

from gh_downstream.installed import PREFIX, installed_file, reinstall
from gh_downstream.training.checkpoint import COUNTER, CheckpointError, read_weights


def read_pretrained(weights: str, network: str, known: Mapping[str, WeightsEnum]) -> dict[str, Tensor]:
    """Read the tensors of pretrained weights by name, without the prefix that ``DataParallel`` gives them.

    Args:
        weights: A file, as of :func:`~gh_downstream.training.checkpoint.read_weights`; ``pip:NAME``, those of a network
            of timm in an installed package; or a name of torchvision's weights, which are taken from its cache or
            downloaded.
        network: The network, as errors call it; of a package, as timm calls it. The tensors get the names that timm
            gives those of the whole network, with its classifier.
        known: Torchvision's weights of the network by name; empty where it has none.

    Raises:
        FileNotFoundError: There is neither such a file nor such a name, the package is not installed, or the download
            failed.
        CheckpointError: The file cannot be read safely, holds something else, or the tensors of the package are not
            those of the network.
        ValueError: The package has no weights, or the network is none of timm.
        ImportError: timm is not installed.
    """
    if weights.startswith(PREFIX):
        return _of_package(weights, network)
    state = read_weights(Path(weights)) if Path(weights).is_file() else _download(weights, network, known)
    return {name.removeprefix("module."): value for name, value in state.items()}


def _of_package(weights: str, network: str) -> dict[str, Tensor]:
    """Such packages name the tensors as the code did that they are for; their order is that of timm's."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"weights {weights} need timm: pip install 'gh_downstream[pretrained]'") from error
    file = installed_file(weights, ".pth", ".pt")
    try:
        state = read_weights(file)
    except CheckpointError as error:
        raise CheckpointError(
            f"weights {weights}: {file} is damaged, or holds no weights: {reinstall(weights)}"
        ) from error
    if not timm.is_model(network):
        raise ValueError(f"weights {weights} are those of a network of timm, and {network} is none")
    with torch.device("meta"):
        whole = timm.create_model(network).state_dict()
    there, here = ([item for item in part.items() if not item[0].endswith(COUNTER)] for part in (state, whole))
    for number, (found, wanted) in enumerate(zip_longest(there, here), start=1):
        if found is None or wanted is None or _kind(*found) != _kind(*wanted):
            raise CheckpointError(
                f"weights {weights} are not those of {network}: tensor {number} is {_described(found)} there, "
                f"{_described(wanted)} here"
            )
    return {name: value for (name, _), (_, value) in zip(here, there, strict=True)}


def _kind(name: str, value: Tensor) -> tuple[str, torch.Size]:
    """What has to be the same: a bias and a running mean have one shape."""
    return name.rpartition(".")[2], value.shape


def _described(item: tuple[str, Tensor] | None) -> str:
    return f"{item[0]} {list(item[1].shape)}" if item else "missing"


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
