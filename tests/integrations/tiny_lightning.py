"""A LightningModule with two losses in conflict, the same without harmonization, and a Trainer for them."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn.functional import mse_loss

from gh_downstream import Harmonizer
from gh_downstream.integrations.lightning import GradientHarmonizationMixin


def rows(n=16):
    return torch.randn(n, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def losses_of(model, batch):
    """A regression, and an alignment that also unlearns it: both means over the batch."""
    batch = batch.to(model.head.weight.dtype)
    features = model.backbone(batch[:, :6])
    task = mse_loss(model.head(features)[:, 0], batch[:, 6])
    return {"task": task, "alignment": 0.1 * features.square().mean() - 0.5 * task}


class Plain(pl.LightningModule):
    """Knows nothing of harmonization: the sum of the same losses."""

    def __init__(self, interval="step", optimizer="sgd", dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
        self.head = nn.Linear(4, 1)
        self.interval, self.optimizer = interval, optimizer
        self.to(dtype)

    def training_step(self, batch, batch_idx):
        losses = losses_of(self, batch)
        return losses["task"] + losses["alignment"]

    def configure_optimizers(self):
        kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[self.optimizer]
        optimizer = kind(self.parameters(), lr=0.05)
        if self.interval is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.interval}}


class Adapted(GradientHarmonizationMixin, pl.LightningModule):
    def __init__(self, weighting=None, period=1, interval=None, **settings):
        super().__init__()
        self.weighting, self.period = weighting, period
        plain = Plain(interval, **settings)
        self.backbone, self.head = plain.backbone, plain.head
        self.interval, self.optimizer = plain.interval, plain.optimizer

    def compute_losses(self, batch, batch_idx):
        return losses_of(self, batch)

    def create_harmonizer(self):
        return Harmonizer(self.weighting, self.backbone, model=self, period=self.period)

    configure_optimizers = Plain.configure_optimizers


class MemoryLogger(pl.loggers.Logger):
    """Keeps the entries of the log."""

    name, version = "memory", 0

    def __init__(self):
        super().__init__()
        self.entries = []

    def log_metrics(self, metrics, step=None):
        self.entries.append(metrics | {"step": step})

    def log_hyperparams(self, *args, **kwargs):
        pass


def fit(model, folder, ckpt_path=None, batch_size=4, sampler=None, **changes):
    settings = {"max_epochs": 1, "log_every_n_steps": 1, "accelerator": "cpu", "devices": 1}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings |= {"logger": MemoryLogger(), "use_distributed_sampler": False}
    trainer = pl.Trainer(default_root_dir=folder, **(settings | changes))
    loader = torch.utils.data.DataLoader(rows(), batch_size=batch_size, sampler=sampler)
    trainer.fit(model, loader, ckpt_path=ckpt_path)
    return trainer


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
