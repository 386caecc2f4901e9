"""Domain discriminators and their loss.

Sizes and initialisation follow Domain Adaptive Faster R-CNN (Chen et al., CVPR 2018, arXiv 1803.03243; the authors'
prototxt and the PyTorch port). A logit is the log-odds of **source**: label 1 is source, 0 is target. Codebases
differ in this; training is the same either way, plots are not.

None of them reverses gradients: put :class:`~gh_downstream.adaptation.GradientReversal` before them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus


def _initialise(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class ImageDiscriminator(nn.Module):
    """Image-level discriminator with one logit for each location: conv 1x1, ReLU, conv 1x1.

    Args:
        in_channels: Channels of the feature maps.
        hidden_channels: Channels between the two convolutions.
        std: Standard deviation of the initial weights. The documented 0.001 suits the hundreds of channels and the
            long schedules of full-size detectors; a narrow one starts from it too slowly.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 512, std: float = 0.001) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, hidden_channels, kernel_size=1)
        self.conv2 = nn.Conv2d(hidden_channels, 1, kernel_size=1)
        for layer in (self.conv1, self.conv2):
            _initialise(layer, std)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of shape ``[N, 1, H, W]`` of feature maps of shape ``[N, C, H, W]``."""
        return self.conv2(relu(self.conv1(features)))


class PooledImageDiscriminator(nn.Module):
    """Image-level discriminator with one logit for each image: conv 3x3, ReLU, global average pooling, linear.

    The form that ALDI (Kay et al., arXiv 2403.12029) uses; initialised as torch does.

    Args:
        in_channels: Channels of the feature maps.
        hidden_channels: Channels of the convolution.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 256) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, hidden_channels, kernel_size=3, padding=1)
        self.linear = nn.Linear(hidden_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of shape ``[N, 1]`` of feature maps of shape ``[N, C, H, W]``."""
        return self.linear(relu(self.conv(features)).mean(dim=(2, 3)))


class InstanceDiscriminator(nn.Module):
    """Instance-level discriminator with one logit for each region: three linear layers, ReLU and dropout between.

    Initial weights have the standard deviations 0.01, 0.01 and 0.05.

    Args:
        in_features: Length of a region's feature vector.
        hidden_features: Width of the two hidden layers.
        dropout: Probability of dropping a hidden unit.
    """

    def __init__(self, in_features: int, hidden_features: int = 1024, dropout: float = 0.5) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.fc2 = nn.Linear(hidden_features, hidden_features)
        self.fc3 = nn.Linear(hidden_features, 1)
        self.dropout = nn.Dropout(dropout)
        for layer, std in ((self.fc1, 0.01), (self.fc2, 0.01), (self.fc3, 0.05)):
            _initialise(layer, std)

    def forward(self, regions: Tensor) -> Tensor:
        """Return the logits of shape ``[R, 1]`` of region features of shape ``[R, D]``; ``R`` may be 0."""
        hidden = self.dropout(relu(self.fc1(regions)))
        hidden = self.dropout(relu(self.fc2(hidden)))
        return self.fc3(hidden)


def domain_loss(source_logits: Tensor, target_logits: Tensor) -> Tensor:
    r"""Binary cross-entropy of a discriminator, averaged within each domain and then over the two domains.

    .. math::
        L = \tfrac{1}{2} \Big( \frac{1}{|S|} \sum_{z \in S} \log(1 + e^{-z})
                             + \frac{1}{|T|} \sum_{z \in T} \log(1 + e^{z}) \Big)

    with logits :math:`z` of source (label 1) and target (label 0). Each domain has half of the weight, however
    many images, locations or regions it has (Chen et al., section 4.2, sum over them instead). A discriminator that
    cannot tell the domains apart has a loss of :math:`\log 2`: values near 0.69 are what a working adversarial game
    looks like.

    Args:
        source_logits: Logits of source, of any shape. A domain without logits adds 0, with a gradient of 0.
        target_logits: Logits of target, of any shape.

    Returns:
        Scalar, at least 0, in float32 or wider.
    """
    return 0.5 * (_mean(softplus(-_widen(source_logits))) + _mean(softplus(_widen(target_logits))))


def _widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean(x: Tensor) -> Tensor:
    """Mean of ``x``; 0 rather than NaN where it is empty, and still part of the graph."""
    return x.sum() / max(x.numel(), 1)
