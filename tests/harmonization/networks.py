"""A small network with a trunk, two heads and two losses, for the tests of this folder."""

import torch
from torch import Tensor, nn


class TwoHeads(nn.Module):
    """A trunk, a task head, a discriminator that the alignment reaches, and an affine that no loss reaches."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)
        self.discriminator = nn.Linear(8, 1)
        self.unused = nn.Linear(2, 2)

    def losses(self, features_task: Tensor, features_alignment: Tensor) -> dict[str, Tensor]:
        # The same features pulled towards and away from the origin: the gradients conflict.
        return {
            "task": (self.head(features_task) ** 2).sum(1).mean() + (features_task**2).sum(1).mean(),
            "alignment": (self.discriminator(features_alignment) - 2).abs().mean()
            - 0.5 * (features_alignment**2).sum(1).mean(),
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        return self.losses(features, features)


def batch(n: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """Gradient by parameter name, zeros where the loss does not reach."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


def flat(by_name: dict[str, Tensor], prefix: str) -> Tensor:
    return torch.cat([g.flatten() for n, g in by_name.items() if n.startswith(prefix)]).double()


class InPlaceSine(torch.autograd.Function):
    """A sine that spares memory: its backward pass multiplies what it saved in place."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.cos())
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        (cosine,) = ctx.saved_tensors
        return cosine.data.mul_(gradient)


class ByLosses:
    """A weighting whose weights are the losses."""

    takes_losses = True

    def __call__(self, gramian: Tensor, losses: dict[str, float]) -> Tensor:
        return torch.tensor([*losses.values()])
