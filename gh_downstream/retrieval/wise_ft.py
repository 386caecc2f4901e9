"""WiSE-FT: weights between those that a training started from and those that it ended with (arXiv 2109.01903)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gh_downstream.retrieval.config import RetrievalConfig
from gh_downstream.retrieval.model import RetrievalModel
from gh_downstream.training import load_all_weights, load_weights


def starting_weights(config: RetrievalConfig, model: RetrievalModel) -> dict[str, Tensor]:
    """Return the state dict of the encoder that a training started from.

    Args:
        config: The configuration of the training.
        model: As it is built from it; gets the weights of ``training.init_from``, if that is given.

    Raises:
        ValueError: The training started from random weights, wholly or in part.
        FileNotFoundError: The file of ``training.init_from`` is gone.
    """
    random = "init: random" if config.init == "random" else "the projections of towers" * (config.encoder == "towers")
    if config.training.init_from is not None:
        begin = Path(config.training.init_from)
        load_all_weights(model, begin, "encoder.") if random else load_weights(model, begin)
    elif random:
        raise ValueError(
            f"wise_ft goes back towards the starting model, but this training started from random weights ({random}), "
            "which know nothing: leave it out"
        )
    return {name: x.clone() for name, x in model.encoder.state_dict().items()}


def interpolate(encoder: nn.Module, start: Mapping[str, Tensor], alpha: float) -> None:
    r"""Move an encoder to :math:`(1 - \alpha) \theta_0 + \alpha \theta_1`, buffers too, in place.

    With adapters (:func:`~gh_downstream.retrieval.encoders.add_lora`) this is so of the merged weights. The ends are
    the start and the encoder as it was, bit for bit.

    Args:
        encoder: With the weights :math:`\theta_1`.
        start: State dict of the start :math:`\theta_0`.
        alpha: Share :math:`\alpha` of the encoder's own weights, from 0 to 1.
    """

    def between(name: str, end: Tensor) -> Tensor:
        # An update is the product of two factors, of which one starts at 0: that one alone is scaled.
        if ".lora_" in name and start[name].any():
            return end
        return torch.lerp(start[name].double(), end.double(), alpha).to(end.dtype)

    encoder.load_state_dict({name: between(name, end) for name, end in encoder.state_dict().items()})
