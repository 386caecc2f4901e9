"""The networks under the methods: from images to features, with a bottleneck at the end where one is asked for."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision import models

from gh_downstream.classification.data.transforms import CROP, PHOTO_STATISTICS
from gh_downstream.installed import PREFIX
from gh_downstream.training.checkpoint import fill_weights
from gh_downstream.training.pretrained import read_pretrained

logger = logging.getLogger(__name__)

RESNETS = ("resnet18", "resnet50", "resnet101")
VIT_DIGITS: dict[str, Any] = {
    "img_size": 28,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 64,
    "depth": 4,
    "num_heads": 4,
}
"""``vit-digits``, a small vision transformer, as arguments of timm's."""


class Backbone(nn.Module):
    """A network and its bottleneck.

    Args:
        trunk: From images to features ``[N, trunk_features]``.
        trunk_features: Number of these features.
        bottleneck: Features after a linear layer; None for those of the trunk.
        norm: Whether batch normalization and ReLU follow that layer.
        dropout: Probability of dropping a feature of the bottleneck.

    Attributes:
        out_features: Number of features that it returns.
    """

    def __init__(
        self,
        trunk: nn.Module,
        trunk_features: int,
        bottleneck: int | None = None,
        *,
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.bottleneck: nn.Module = nn.Identity()
        if bottleneck is not None:
            self.bottleneck = nn.Sequential(nn.Linear(trunk_features, bottleneck))
            if norm:
                self.bottleneck.append(nn.BatchNorm1d(bottleneck)).append(nn.ReLU())
            if dropout:
                self.bottleneck.append(nn.Dropout(dropout))
        self.out_features = bottleneck or trunk_features

    def forward(self, images: Tensor) -> Tensor:
        """Return the features ``[N, out_features]`` of images ``[N, C, H, W]``."""
        return self.bottleneck(self.trunk(images))


class DigitsTrunk(nn.Sequential):
    """A LeNet for digits ``[N, 1, 28, 28]``: two convolutions of 5 by 5 with pooling, one linear layer.

    Args:
        channels: Channels of the two convolutions.
        features: Features of the linear layer.
    """

    def __init__(self, channels: tuple[int, int] = (16, 32), features: int = 128) -> None:
        super().__init__(
            *(nn.Conv2d(1, channels[0], kernel_size=5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(*channels, kernel_size=5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(channels[1] * 4 * 4, features), nn.ReLU()),
        )
        self.out_features = features


def build_backbone(
    name: str,
    weights: str | None = None,
    bottleneck: int | None = None,
    *,
    norm: bool = True,
    dropout: float = 0.0,
) -> Backbone:
    """Build a backbone.

    Args:
        name: ``digits`` (:class:`DigitsTrunk`); ``resnet18``, ``resnet50`` or ``resnet101`` of torchvision;
            ``vit-digits``, or the name of a network of timm, such as ``vit_base_patch16_224``.
        weights: A file with a state dict; ``pip:NAME`` for those of a network of timm in an installed package; a name
            of torchvision's weights (``IMAGENET1K_V1``), or ``pretrained`` for those of timm, the usual ones or those
            of the tag in the name of the network; None starts from random ones. What was loaded is logged.
        bottleneck: Features of the bottleneck; None for none.
        norm: As in :class:`Backbone`.
        dropout: As in :class:`Backbone`.

    Raises:
        ValueError: There is no such network, or the weights belong to another one.
        FileNotFoundError: The weights are neither a file, an installed package nor a known name, or cannot be
            downloaded.
        ImportError: The network is one of timm, which is not installed.
    """
    known: Mapping[str, models.WeightsEnum] = {}
    if name in RESNETS:
        trunk = models.get_model(name, weights=None)
        features = trunk.fc.in_features
        trunk.fc = nn.Identity()
        known = models.get_model_weights(name).__members__
    elif name == "digits":
        trunk = DigitsTrunk()
        features = trunk.out_features
    else:
        pretrained = weights == "pretrained" and name != "vit-digits"
        if weights is not None and not (pretrained or weights.startswith(PREFIX) or Path(weights).is_file()):
            raise FileNotFoundError(
                f"weights {weights}: there is no such file; give one, {PREFIX}NAME or pretrained for a network of "
                "timm, or null for none"
            )
        trunk = _of_timm(name, pretrained)
        # Of some, num_features are those before a last layer that is no classifier.
        features = getattr(trunk, "head_hidden_size", trunk.num_features)
        weights = None if pretrained else weights
    if weights is not None:
        fill_weights(trunk, read_pretrained(weights, name, known), weights, name)
    return Backbone(trunk, features, bottleneck, norm=norm, dropout=dropout)


def check_images(name: str, weights: str | None, transform: str) -> None:
    """Check that a backbone, by its name and weights, takes the images that a transform makes.

    Raises:
        ValueError: It takes digits and gets photos or the other way round, or photos of another size, or its
            pretrained weights were trained with images that were normalized otherwise.
    """
    of_digits = name in ("digits", "vit-digits")
    if of_digits != (transform == "digits"):
        wanted = "digits" if of_digits else "photos"
        raise ValueError(f"backbone {name} takes {wanted}, but transform={transform}: set transform={wanted}")
    named = weights is not None and (weights == "pretrained" or weights.startswith(PREFIX))
    if of_digits or (name in RESNETS and not named):
        return
    import timm

    trained = timm.get_pretrained_cfg(name)
    assert trained is not None
    side = trained.input_size[-1]
    if trained.fixed_input_size and side != CROP:
        raise ValueError(f"backbone {name} takes photos of {side} by {side}, the transforms make {CROP} by {CROP}")
    statistics = (tuple(trained.mean), tuple(trained.std))
    if named and statistics != PHOTO_STATISTICS[transform]:
        fitting = [known for known, values in PHOTO_STATISTICS.items() if values == statistics]
        remedy = f"set transform={fitting[0]}" if fitting else "none of the transforms does that"
        raise ValueError(
            f"the pretrained weights of {name} take images normalized by mean {statistics[0]} and deviation "
            f"{statistics[1]}, but transform={transform}: {remedy}"
        )


def _of_timm(name: str, pretrained: bool) -> Any:
    try:
        import timm
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise ImportError(f"backbone {name} needs timm: pip install 'gh_downstream[classification]'") from error
    if name == "vit-digits":
        return VisionTransformer(num_classes=0, **VIT_DIGITS)
    if not timm.is_model(name):
        raise ValueError(
            f"unknown backbone {name!r}: choose digits, {', '.join(RESNETS)}, vit-digits or a network of timm "
            "(timm.list_models())"
        )
    try:
        trunk = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"weights of {name} cannot be downloaded ({' '.join(str(error).split())[:200]}): give a file with a "
            "state dict, or null to start without"
        ) from error
    if pretrained:
        logger.info("loaded the pretrained weights of timm into %s", name)
    return trunk
