"""Adapt a small network from one pair of half moons to a turned one: a loop of one's own, with any weighting.

python examples/plain_loop.py gh++:adaptive
"""

import sys

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gh_downstream import Harmonizer
from gh_downstream.adaptation import domain_loss, scale_gradient


def moons(number: int, degrees: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of two half moons, turned by an angle, and which moon each belongs to."""
    labels, at = torch.arange(number) % 2, torch.pi * torch.rand(number)
    points = torch.stack([at.cos() + labels - 0.5, at.sin() * (1 - 2 * labels) + 0.5 * labels - 0.25], dim=1)
    turn = torch.deg2rad(torch.tensor(degrees))
    matrix = torch.tensor([[turn.cos(), turn.sin()], [-turn.sin(), turn.cos()]])
    return (points + 0.1 * torch.randn(number, 2)) @ matrix, labels


def train(weighting: str, steps: int = 600, seed: int = 0) -> float:
    """Train on the labelled source and the unlabelled target; return the accuracy on the target in percent."""
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    head, discriminator = nn.Linear(32, 2), nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters(), *discriminator.parameters()], lr=3e-3)
    harmonizer = Harmonizer(weighting, shared=trunk)
    for step in range(steps):
        (source, labels), (target, _) = moons(128, 0.0), moons(128, 35.0)
        of_source, of_target = trunk(source), trunk(target)
        domains = [discriminator(scale_gradient(features, -1.0)) for features in (of_source, of_target)]
        losses = {"task": cross_entropy(head(of_source), labels), "alignment": domain_loss(*domains)}
        optimizer.zero_grad()
        report = harmonizer.backward(losses)
        optimizer.step()
        if step % 200 == 199:
            print(f"step {step + 1}: " + ", ".join(f"{key} {value:.2f}" for key, value in report.as_dict().items()))
    points, labels = moons(2000, 35.0)
    return 100 * (head(trunk(points)).argmax(dim=1) == labels).float().mean().item()


if __name__ == "__main__":
    print(f"accuracy on the target: {train(sys.argv[1] if len(sys.argv) > 1 else 'gh++'):.1f} %")
