"""The network that is measured: random weights and inputs, source and target in forward passes of their own."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gh_downstream.adaptation import domain_loss, scale_gradient
from gh_downstream.gpu_check.setting import Setting

Losses = dict[str, Tensor]
Split = Callable[[Sequence[Any]], Sequence[Any]]
"""From the features of both domains to those for the alignment and those for the task, as ``fork`` does it."""


def together(features: Sequence[Any]) -> Sequence[Any]:
    """The same features for both."""
    return features, features


class Classifier(nn.Module):
    """A classifier of images, or of vectors, whose discriminator sees reversed features.

    Task and alignment also pull the features apart. A third task, a regression, is made on request.
    """

    def __init__(self, trunk: nn.Module, features: int, shape: Sequence[int], size: int, third: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.head, self.discriminator = nn.Linear(features, 10), nn.Linear(features, 1)
        self.regression = nn.Linear(features, 2) if third else None
        self.tasks = ("alignment", "task", "regression")[: 3 if third else 2]
        self.shape, self.size = list(shape), size

    def batch(self) -> list[Tensor]:
        """Make images of source and target, and classes of the source, on the device of the network."""
        labels = torch.arange(self.size) % 10
        source, target = torch.randn(2, self.size, *self.shape)
        return [part.to(self.head.weight.device) for part in (source, target + 0.5, labels)]

    def forward(self, batch: Sequence[Tensor], split: Split = together) -> Losses:
        """Return the losses by task, in the precision of the weights."""
        source, target, labels = (part.to(self.head.weight.device) for part in batch)
        for_alignment, (for_task, _) = split([self.trunk(part.to(self.head.weight.dtype)) for part in (source, target)])
        domains = [self.discriminator(scale_gradient(features, -1.0)) for features in for_alignment]
        spread = sum(features.float().square().mean() for features in for_alignment)
        found = {
            "alignment": domain_loss(*domains) - 4 * spread,
            "task": cross_entropy(self.head(for_task), labels) + 4 * for_task.float().square().mean(),
        }
        if self.regression is not None:
            found["regression"] = (self.regression(for_task) - 1).float().square().mean()
        return found


def losses_in(
    dtype: torch.dtype, scaler: torch.amp.GradScaler, model: nn.Module, batch: Sequence[Tensor], split: Split = together
) -> Losses:
    """The scaled losses of a forward pass in a precision."""
    with torch.autocast(batch[0].device.type, dtype, enabled=dtype != torch.float32):
        losses = model(batch, split)
    return {task: scaler.scale(loss) for task, loss in losses.items()}


def backward_of_sum(losses: Losses) -> None:
    """The backward pass without harmonization, or with a fork."""
    torch.stack([*losses.values()]).sum().backward()


def flat(parts: Iterable[Tensor]) -> Tensor:
    """All in one vector."""
    return torch.cat([part.flatten() for part in parts])


def gradient(parameters: Iterable[Tensor]) -> Tensor:
    """All gradients in one vector."""
    return flat(parameter.grad for parameter in parameters if parameter.grad is not None)


def small_classifier(setting: Setting, third: bool = False) -> Classifier:
    """A few convolutions; smooth, so that float32 and float64 see no kink on different sides."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Tanh()]
    trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 32), nn.Tanh())
    return Classifier(trunk, 32, (3, 16, 16), 16, third).to(setting.device)


def small_tensors(setting: Setting) -> Classifier:
    """80 small tensors: what a network costs that has many of them."""
    layers = [module for _ in range(40) for module in (nn.Linear(64, 64), nn.Tanh())]
    return Classifier(nn.Sequential(*layers), 64, (64,), setting.size(256, 16)).to(setting.device)


def of_images(setting: Setting, name: str) -> Classifier:
    """A model of torchvision with 32 images of each domain; small it is a ResNet-18."""
    from torchvision.models import get_model

    trunk, side = get_model(setting.size(name, "resnet18"), num_classes=64), setting.size(224, 64)
    return Classifier(trunk, 64, (3, side, side), setting.size(32, 2)).to(setting.device)
