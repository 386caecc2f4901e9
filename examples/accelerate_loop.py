"""The loop of plain_loop.py with accelerate: one process or many, mixed precision, clipping, saving.

accelerate launch examples/accelerate_loop.py gh++:adaptive
"""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from plain_loop import moons
from torch import nn
from torch.nn.functional import cross_entropy

from gh_downstream import Harmonizer
from gh_downstream.adaptation import domain_loss, scale_gradient


class Network(nn.Module):
    """A trunk, a classifier and a discriminator; its losses by task."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 2)
        self.discriminator = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, source: torch.Tensor, labels: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the losses."""
        of_source, of_target = self.trunk(source), self.trunk(target)
        domains = [self.discriminator(scale_gradient(features, -1.0)) for features in (of_source, of_target)]
        return {"task": cross_entropy(self.head(of_source), labels), "alignment": domain_loss(*domains)}


def train(weighting: str, steps: int = 600) -> float:
    """Train, save, and return the accuracy on the target in percent."""
    accelerator = Accelerator()
    set_seed(0)
    network = Network()
    harmonizer = Harmonizer(weighting, shared=network.trunk, model=network)
    model, optimizer = accelerator.prepare(network, torch.optim.Adam(network.parameters(), lr=3e-3))
    accelerator.register_for_checkpointing(harmonizer)
    set_seed(1, device_specific=True)  # each process has samples of its own
    share = 128 // accelerator.num_processes
    for step in range(steps):
        (source, labels), (target, _) = moons(share, 0.0), moons(share, 35.0)
        batch = [x.to(accelerator.device) for x in (source, labels, target)]
        with accelerator.no_sync(model):  # the harmonizer averages the gradients itself
            losses = model(*batch)
        harmonizer.backward(losses, scale=accelerator.scaler)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 199 and accelerator.is_main_process:
            print(f"step {step + 1}: {harmonizer.measurements.read()}")
    accelerator.save_state("outputs/accelerate_loop")
    points, labels = moons(2000, 35.0)
    found = network.head(network.trunk(points.to(accelerator.device))).argmax(dim=1).cpu()
    return 100 * (found == labels).float().mean().item()


if __name__ == "__main__":
    accuracy = train(sys.argv[1] if len(sys.argv) > 1 else "gh++")
    if Accelerator().is_main_process:
        print(f"accuracy on the target: {accuracy:.1f} %")
