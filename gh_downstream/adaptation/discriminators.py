"""Domain discriminators and their losses.

Sizes and initialisation follow Domain Adaptive Faster R-CNN (Chen et al., CVPR 2018, arXiv 1803.03243; the authors'
prototxt and the PyTorch port) and Strong-Weak Distribution Alignment (Saito et al., CVPR 2019, arXiv 1812.04798; the
authors' VGG16). A logit is the log-odds of **source**: label 1 is source, 0 is target. Codebases differ in this;
training is the same either way, plots are not. Layers have torch's initial values where nothing else is said.

None of them reverses gradients: put :class:`~gh_downstream.adaptation.GradientReversal` before them.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, sigmoid, softplus


class ImageDiscriminator(nn.Sequential):
    """Image-level discriminator with one logit for each location: conv 1x1, ReLU, conv 1x1.

    From feature maps ``[N, in_channels, H, W]`` to logits ``[N, 1, H, W]``.

    Args:
        hidden_channels: Channels between the two convolutions.
        std: Standard deviation of the initial weights. The documented 0.001 suits the hundreds of channels and the
            long schedules of full-size detectors; a narrow one starts from it too slowly.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 512, std: float = 0.001) -> None:
        convolutions = nn.Conv2d(in_channels, hidden_channels, 1), nn.Conv2d(hidden_channels, 1, 1)
        super().__init__(convolutions[0], nn.ReLU(), convolutions[1])
        for layer in convolutions:
            _initialise(layer, std)


class PooledImageDiscriminator(nn.Sequential):
    """Image-level discriminator with one logit for each image: conv 3x3, ReLU, global average pooling, linear.

    The form that ALDI (Kay et al., arXiv 2403.12029) uses. From feature maps ``[N, in_channels, H, W]`` to logits
    ``[N, 1]``; the convolution has ``hidden_channels``.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 256) -> None:
        super().__init__(
            nn.Conv2d(in_channels, hidden_channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(hidden_channels, 1),
        )


class InstanceDiscriminator(nn.Sequential):
    """Instance-level discriminator with one logit for each region: three linear layers, ReLU and dropout between.

    From region features ``[R, in_features]`` to logits ``[R, 1]``; ``R`` may be 0. Initial weights have the standard
    deviations 0.01, 0.01 and 0.05.

    Args:
        hidden_features: Width of the two hidden layers.
        dropout: Probability of dropping a hidden unit.
    """

    def __init__(self, in_features: int, hidden_features: int = 1024, dropout: float = 0.5) -> None:
        widths = (in_features, hidden_features, hidden_features, 1)
        linear = [nn.Linear(*sizes) for sizes in pairwise(widths)]
        for layer, std in zip(linear, (0.01, 0.01, 0.05), strict=True):
            _initialise(layer, std)
        between = (nn.ReLU(), nn.Dropout(dropout))
        super().__init__(linear[0], *between, linear[1], *between, linear[2])


class LocalDiscriminator(nn.Sequential):
    """Local discriminator with one logit for each location: three 1x1 convolutions, ReLU between.

    That of Strong-Weak Distribution Alignment for a low-level map, with a loss that asks for a strong alignment:
    :func:`least_squares_domain_loss`. From feature maps ``[N, in_channels, H, W]`` to logits ``[N, 1, H, W]``.

    Args:
        hidden_channels: Channels after the first convolution, at least 2; after the second, half as many.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 256) -> None:
        narrow = hidden_channels // 2
        super().__init__(
            nn.Conv2d(in_channels, hidden_channels, kernel_size=1),
            nn.ReLU(),
            nn.Conv2d(hidden_channels, narrow, kernel_size=1),
            nn.ReLU(),
            nn.Conv2d(narrow, 1, kernel_size=1),
        )


class GlobalDiscriminator(nn.Module):
    """Global discriminator with one logit for each image: three 3x3 convolutions of stride 2, global average, linear.

    That of Strong-Weak Distribution Alignment for a high-level map, with a loss that asks for a weak alignment:
    :func:`focal_domain_loss`. After each convolution come normalization, ReLU and dropout.

    Args:
        hidden_channels: Channels after the first convolution, at least 8; after the other two, a quarter of them.
        dropout: Probability of dropping a hidden unit. The authors' 0.5 suits hundreds of channels; a narrow one hardly
            learns with it.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 512, dropout: float = 0.5) -> None:
        super().__init__()
        narrow = hidden_channels // 4
        sizes = pairwise((in_channels, hidden_channels, narrow, narrow))
        self.convolutions = nn.ModuleList(nn.Conv2d(*pair, kernel_size=3, stride=2, padding=1) for pair in sizes)
        # Not the authors' batch norm: source and target pass one after the other, so it would take away the very shift
        # between them; and with the one or two images of a detector's batch its statistics are noise, which differs
        # from process to process. Each image is normalized alone instead; in one group, because a small map ends at a
        # single location, where smaller groups have little left to normalize over.
        self.norms = nn.ModuleList(nn.GroupNorm(1, channels) for channels in (hidden_channels, narrow, narrow))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(narrow, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of shape ``[N, 1]`` of feature maps of shape ``[N, C, H, W]`` of any size."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            features = self.dropout(relu(norm(convolution(features))))
        return self.linear(features.mean(dim=(2, 3)))


def _initialise(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


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
    return _over_domains(lambda z: softplus(-z), source_logits, target_logits)


def least_squares_domain_loss(source_logits: Tensor, target_logits: Tensor) -> Tensor:
    r"""Squared error of a discriminator, averaged within each domain and then over the two domains.

    .. math::
        L = \tfrac{1}{2} \Big( \frac{1}{|S|} \sum_{z \in S} (1 - \sigma(z))^2
                             + \frac{1}{|T|} \sum_{z \in T} \sigma(z)^2 \Big)

    the local loss of Strong-Weak Distribution Alignment (Saito et al., CVPR 2019, arXiv 1812.04798, section 3), whose
    :math:`D` is the probability of target, :math:`1 - \sigma(z)`. A discriminator that cannot tell the domains apart
    has a loss of 1/4. Arguments and type are those of :func:`domain_loss`; the value is in [0, 1].
    """
    return _over_domains(lambda z: sigmoid(-z).square(), source_logits, target_logits)


def focal_domain_loss(source_logits: Tensor, target_logits: Tensor, gamma: float = 5.0) -> Tensor:
    r"""Focal loss of a discriminator, averaged within each domain and then over the two domains.

    .. math::
        L = \tfrac{1}{2} \Big( \frac{1}{|S|} \sum_{z \in S} f(z) + \frac{1}{|T|} \sum_{z \in T} f(-z) \Big), \qquad
        f(z) = -(1 - \sigma(z))^\gamma \log \sigma(z)

    the global loss of Strong-Weak Distribution Alignment (Saito et al., CVPR 2019, arXiv 1812.04798, section 3). Images
    that are easily told apart count little, and so are hardly aligned: a target whose scenes differ as a whole keeps
    them. With :math:`\gamma = 0` it is :func:`domain_loss`. A discriminator that cannot tell the domains apart has a
    loss of :math:`2^{-\gamma} \log 2`. Logits and value are as in :func:`domain_loss`.

    Raises:
        ValueError: ``gamma`` is negative.
    """
    if gamma < 0:
        raise ValueError(f"gamma of the focal loss must be at least 0, got {gamma}")

    def focal(logits: Tensor) -> Tensor:
        # The power as an exponential of logits: that of a probability of 0 has no gradient for a gamma below 1.
        return torch.exp(-gamma * softplus(logits)) * softplus(-logits)

    return _over_domains(focal, source_logits, target_logits)


def consistency_loss(
    image_probabilities: Tensor, region_probabilities: Tensor, regions_per_image: Sequence[int]
) -> Tensor:
    r"""Difference between what an image and each of its regions look like to the two discriminators.

    .. math:: L = \frac{1}{R} \sum_i \sum_{j=1}^{R_i} \Big| \frac{1}{|I_i|} \sum_{u,v} p_i^{(u,v)} - p_{i,j} \Big|

    the consistency regularization of Domain Adaptive Faster R-CNN (Chen et al., CVPR 2018, arXiv 1803.03243,
    section 4.2), as a mean over the :math:`R = \sum_i R_i` regions; the paper's 2-norm of a scalar is the absolute
    value. With several feature levels, the mean runs over the levels too. An image without regions adds nothing.

    Args:
        image_probabilities: Mean over the locations of each image's domain probability, of shape ``[N, L]``, with one
            column for each of ``L`` feature levels.
        region_probabilities: Domain probability of each region, of shape ``[R]``, the regions of the first image
            first.
        regions_per_image: The ``N`` numbers of regions :math:`R_i`, each at least 0.

    Returns:
        Scalar in [0, 1]; 0, with a gradient of 0, without any region.

    Raises:
        ValueError: The numbers of regions do not fit the shapes of the probabilities.
    """
    counts = list(regions_per_image)
    images, regions = image_probabilities, region_probabilities
    if images.ndim != 2 or regions.ndim != 1 or len(images) != len(counts) or len(regions) != sum(counts):
        raise ValueError(
            f"the consistency loss got {images.shape[:1].numel()} images and {regions.numel()} regions, of the shapes "
            f"{list(images.shape)} and {list(regions.shape)}, for these numbers of regions per image: {counts}"
        )
    rows = zip(image_probabilities.split(1), counts, strict=True)
    expected = torch.cat([row.expand(count, -1) for row, count in rows]) if counts else image_probabilities
    difference = expected - region_probabilities[:, None]
    return difference.abs().sum() / max(difference.numel(), 1)


def _over_domains(loss: Callable[[Tensor], Tensor], source_logits: Tensor, target_logits: Tensor) -> Tensor:
    """Mean of ``loss``, of logits as of source, within each domain and then over the two."""

    def mean(logits: Tensor) -> Tensor:
        losses = loss(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        return losses.sum() / max(losses.numel(), 1)  # 0 rather than NaN without logits, and still part of the graph

    return 0.5 * (mean(source_logits) + mean(-target_logits))
