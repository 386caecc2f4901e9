"""A network of timm as the trunk of a detector, for any engine."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)
"""Of the maps that a feature pyramid is built on."""


class TimmTrunk(nn.Module):
    """A network of timm without its head, which returns its feature maps at strides 4, 8, 16 and 32.

    Args:
        name: timm's name of the network, such as ``tf_efficientnet_lite0``: of any that has these maps, at any size of
            images.
        frozen_layers: How many of its five layers, which end at strides 2, 4, 8, 16 and 32, are not trained.
        frozen_norm: Batch normalization with fixed statistics and affine maps.
        maps: What the maps are called.

    Attributes:
        network: The network, from random weights, with the names of timm.
        channels: Channels of the maps.
        indices: Their places among all maps of the network.
        mean, std: Those of the images that timm's weights were trained with, by channel, RGB in [0, 1].

    Raises:
        ValueError: timm has no such network, or it has no such maps.
        ImportError: timm is not installed.
    """

    network: Any

    def __init__(
        self, name: str, frozen_layers: int = 0, frozen_norm: bool = False, maps: Sequence[str] = ("0", "1", "2", "3")
    ) -> None:
        super().__init__()
        try:
            import timm
            from timm.layers import freeze_batch_norm_2d
        except ImportError as error:
            raise ImportError(f"backbone {name}: those of timm need pip install 'gh_downstream[pretrained]'") from error
        if not timm.is_model(name):
            alike = get_close_matches(name, timm.list_models())
            raise ValueError(f"unknown backbone {name!r}: timm has {', '.join(alike) or 'none like it'}")
        try:
            # With modules of the whole network, under the names that its weights have.
            features: Any = timm.create_model(name, features_only=True, feature_cls="getter")
            strides = features.feature_info.reduction()
        except (RuntimeError, AttributeError, TypeError) as error:
            raise ValueError(f"backbone {name} gives no feature maps: {error}") from error
        network = features.model
        if not set(STRIDES) <= set(strides) or network.default_cfg.get("fixed_input_size"):
            sizes = ", of one size of images alone" if network.default_cfg.get("fixed_input_size") else ""
            raise ValueError(
                f"backbone {name} gives feature maps at strides {strides}{sizes}; a detector needs 4, 8, 16 and 32, at "
                "any size"
            )
        places = [strides.index(stride) for stride in STRIDES]
        self.channels = [features.feature_info.channels()[place] for place in places]
        self.mean, self.std = (list(network.default_cfg[key]) for key in ("mean", "std"))
        ends = zip(strides, features.feature_info.module_name(), strict=True)
        if frozen := [end for stride, end in ends if frozen_layers and stride <= 2**frozen_layers]:
            _freeze_until(network, frozen[-1])
        # Not torchvision's or Detectron2's frozen layers: timm's batch normalization includes the activation behind it.
        self.network = freeze_batch_norm_2d(network) if frozen_norm else network
        self.indices = [features.out_indices[place] for place in places]
        self._maps = maps

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps of normalized images of shape ``[N, 3, H, W]`` by name."""
        found = self.network.forward_intermediates(images, indices=self.indices, intermediates_only=True)
        return dict(zip(self._maps, found, strict=True))


def _freeze_until(network: nn.Module, end: str) -> None:
    """Let no parameter of a network be trained that is used up to the end of one of its modules."""
    order = [name for name, _ in network.named_modules()]
    inside = [place for place, name in enumerate(order) if f"{name}.".startswith(f"{end}.")]
    if not inside:
        raise ValueError(f"where the layers of {type(network).__name__} end is not known: train all five, or none")
    for name in order[: inside[-1] + 1]:
        for parameter in network.get_submodule(name).parameters(recurse=False):
            parameter.requires_grad_(False)
