"""Models with several losses, in trainings that take milliseconds.

Tests import this module before detectron2, which its name sees to: it skips them where there is none.
"""

import pytest

# Not "detectron2": the folder of these tests would pass for a namespace package of that name.
pytest.importorskip(
    "detectron2.engine",
    reason="needs Detectron2: pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2'",
    exc_type=ImportError,
)

import torch
from detectron2.config import configurable, get_cfg
from detectron2.engine import SimpleTrainer
from detectron2.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from gh_downstream.adaptation import scale_gradient
from gh_downstream.integrations.detectron2 import add_gh_config


@META_ARCH_REGISTRY.register()
class ToyDetector(nn.Module):
    """Two detection losses and an alignment loss whose gradients over the backbone conflict."""

    @configurable
    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
            self.head = nn.Linear(8, 2)
            self.discriminator = nn.Linear(8, 1)

    @classmethod
    def from_config(cls, cfg):
        return {}

    def forward(self, x):
        features = self.backbone(x)
        scores, offsets = self.head(features).float().unbind(1)
        domain = self.discriminator(scale_gradient(features, -1)).float()
        wanted = x[:, 0].float()
        return {
            "loss_cls": (scores - wanted).square().mean(),
            "loss_box_reg": (offsets + wanted).abs().mean(),
            "loss_da_img": 4 * (domain.squeeze(1) - wanted).square().mean(),
        }


def batches(start=0, size=4):
    """The same batches for everybody, from the one numbered ``start`` on."""
    while True:
        yield torch.randn(size, 6, generator=torch.Generator().manual_seed(start))
        start += 1


def toy_trainer(model=None, kind=SimpleTrainer, start=0, **options):
    model = model or ToyDetector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return kind(model, batches(start), optimizer, **options)


def toy_cfg(folder, *overrides):
    cfg = get_cfg()
    add_gh_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ToyDetector"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.MAX_ITER = 6
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.BASE_LR = 0.05
    cfg.GH.LOG_PERIOD = 2
    cfg.OUTPUT_DIR = str(folder)
    cfg.merge_from_list(list(overrides))
    return cfg


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def gradients(trainer):
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
