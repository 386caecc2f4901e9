"""Gradient reversal: the identity forward, a negative factor backward.

The discriminator behind it learns to tell the domains apart; whatever lies before it learns to confuse the
discriminator, in the same backward pass (Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation",
ICML 2015, arXiv 1409.7495).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grad, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return ``x`` unchanged, and multiply the gradient by ``factor`` on its way back.

    ``-strength`` as the factor reverses the gradient, 0 stops it.
    """
    return _ScaleGradient.apply(x, factor)


def reversal_schedule(progress: float, gamma: float = 10.0) -> float:
    r"""Strength of the gradient reversal as training advances, from 0 towards 1.

    .. math:: \lambda_p = \frac{2}{1 + \exp(-\gamma p)} - 1

    (Ganin and Lempitsky, section 4.) It keeps the noise of an untrained discriminator out of the features.

    Args:
        progress: Share :math:`p` of the training that is done, 0 to 1.
        gamma: Speed of the rise, 10 in the paper.

    Returns:
        Strength in [0, 1), to be multiplied with the final strength.

    Raises:
        ValueError: ``progress`` is not between 0 and 1.
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"the progress of training must be between 0 and 1, got {progress}")
    return 2.0 / (1.0 + math.exp(-gamma * progress)) - 1.0


class GradientReversal(nn.Module):
    """Gradient reversal as a layer: the identity forward, the gradient times ``-strength`` backward.

    Args:
        strength: Factor of the reversed gradient, at least 0. It is an attribute that may be set during training, for
            example ``layer.strength = 0.1 * reversal_schedule(step / max_steps)``, and is not part of the state dict.

    Raises:
        ValueError: ``strength`` is negative: the gradient would not be reversed.
    """

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        if strength < 0:
            raise ValueError(f"the strength of a gradient reversal must be at least 0, got {strength}")
        self.strength = strength

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, of any shape, unchanged."""
        return scale_gradient(x, -self.strength)
