"""Classify points of a shifted domain without its labels: a LightningModule with two losses, on the CPU in seconds.

python examples/lightning_module.py gh++:adaptive
"""

import sys

import lightning
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from gh_downstream import Harmonizer
from gh_downstream.adaptation import mmd
from gh_downstream.integrations.lightning import GradientHarmonizationMixin


class Adapted(GradientHarmonizationMixin, lightning.LightningModule):
    def __init__(self, backbone: nn.Module, head: nn.Module, weighting: str = "gh++"):
        super().__init__()
        self.backbone, self.head, self.weighting = backbone, head, weighting

    def compute_losses(self, batch: dict[str, list[Tensor]], batch_idx: int) -> dict[str, Tensor]:
        (points, labels), (target, _) = batch["source"], batch["target"]
        source, target = self.backbone(points), self.backbone(target)
        return {"task": cross_entropy(self.head(source), labels), "alignment": mmd(source, target)}

    def create_harmonizer(self) -> Harmonizer:
        return Harmonizer(self.weighting, shared=self.backbone, model=self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def clusters(number: int, shift: float) -> TensorDataset:
    """Points around the corners of a cube, all moved by a shift; the corner is the label."""
    labels = torch.randint(8, (number,))
    corners = torch.stack([labels % 2, labels // 2 % 2, labels // 4], dim=1).float()
    return TensorDataset(corners + 0.15 * torch.randn(number, 3) + shift, labels)


def main(weighting: str) -> None:
    lightning.seed_everything(0)
    backbone = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
    domains = {"source": clusters(2048, 0.0), "target": clusters(2048, 0.45)}
    loaders = {name: DataLoader(points, batch_size=64, shuffle=True) for name, points in domains.items()}
    module = Adapted(backbone, nn.Linear(32, 8), weighting)
    trainer = lightning.Trainer(max_epochs=10, accelerator="cpu", gradient_clip_val=1.0, enable_progress_bar=False)
    trainer.fit(module, loaders)  # a dictionary of loaders is Lightning's CombinedLoader

    points, labels = clusters(2048, 0.45).tensors
    right = (module.head(module.backbone(points)).argmax(dim=1) == labels).float().mean()
    print({name: round(float(value), 2) for name, value in trainer.logged_metrics.items()})
    print(f"accuracy on the target: {100 * right:.1f} %")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "gh++")
