"""Tiny backbones and batches of two domains, and what trains on them in processes of its own."""

import copy
import os
import signal
import time

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from gh_downstream.classification.backbones import Backbone, DigitsTrunk
from gh_downstream.classification.batches import StepBatches
from gh_downstream.classification.data import ClassificationDataset, build_transform
from gh_downstream.classification.methods import METHODS, build_method
from gh_downstream.harmonization import HarmonizationConfig
from gh_downstream.training import (
    ExperimentConfig,
    OptimizerConfig,
    Trainer,
    TrainingConfig,
    build_optimizer,
    load_checkpoint,
)

CLASSES = 3
VIT = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 3, "num_heads": 2}


def linear_backbone():
    """From images of 2 by 2 pixels to 5 features."""
    return Backbone(nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh()), 5)


def vit_backbone():
    """From images of 8 by 8 pixels to 5 features, with a bottleneck."""
    return Backbone(VisionTransformer(num_classes=0, **VIT), VIT["embed_dim"], bottleneck=5)


def digits_backbone():
    """From images of 28 by 28 pixels to 6 features, without normalization over the batch."""
    return Backbone(DigitsTrunk(channels=(2, 2), features=6), 6)


def method_of(baseline, backbone, classes, options):
    """A method with some options of its own."""
    kind = METHODS[baseline].Options
    return build_method(baseline, backbone, classes, None if kind is None else kind(**options))


def build(baseline, seed=0, **options):
    """A method on its tiny backbone, in double precision, and a batch of 6 source and 5 target images."""
    torch.manual_seed(seed)
    backbone, side = (vit_backbone(), 8) if baseline == "ssrt" else (linear_backbone(), 2)
    method = method_of(baseline, backbone, CLASSES, options).double()
    batch = {
        "source_images": torch.randn(6, 1, side, side).double(),
        "source_labels": torch.tensor([0, 1, 2, 0, 1, 2]),
        "target_images": torch.randn(5, 1, side, side).double() + 1,
        "progress": 0.3,
    }
    return method, batch


def config(output, *, steps=1, harmonization=None, optimizer=None, **training):
    settings = {"workers": 0, "log_every": 1, "checkpoint_every": 100, "seed": 3}
    return ExperimentConfig(
        output=str(output),
        training=TrainingConfig(steps=steps, **settings | training),
        optimizer=OptimizerConfig(**{"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0} | (optimizer or {})),
        harmonization=HarmonizationConfig(**harmonization or {}),
    )


def train(settings, method, batches):
    """Train, and return the trainer."""
    optimizer = build_optimizer(settings.optimizer, method.parameters())
    trainer = Trainer(settings, method, optimizer, batches)
    trainer.run()
    return trainer


def repeated(batch):
    """The same batch at every step."""
    return lambda step, rank, ranks: copy.copy(batch)


def noise(name, images, labelled):
    pixels = np.random.default_rng(images).integers(0, 256, (images, 28, 28), np.uint8)
    labels = tuple(k % CLASSES for k in range(images)) if labelled else None
    return ClassificationDataset(name, list(pixels), labels, tuple("abc"))


def step_batches(steps, batch_size=8):
    """Batches of digits, as the engine makes them, of noise."""
    source, target = noise("source", 14, True), noise("target", 13, False)
    return StepBatches(source, target, build_transform("digits"), batch_size, steps, seed=3)


def run_case(case, output):
    """The weights after three steps of (baseline, options, weighting)."""
    baseline, options, method = case
    torch.manual_seed(0)
    model = method_of(baseline, digits_backbone(), CLASSES, options)
    settings = config(output, steps=3, harmonization={"weighting": method}, optimizer={"lr": 0.05, "momentum": 0.9})
    train(settings, model, step_batches(3))
    return model.state_dict()


def run_normalized(batches, output):
    """The weights after one step of DANN with batch normalization behind its bottleneck."""
    torch.manual_seed(0)
    backbone = Backbone(DigitsTrunk(channels=(2, 2), features=6), 6, bottleneck=5)
    model = method_of("dann", backbone, CLASSES, {"hidden": 8})
    train(config(output, optimizer={"lr": 0.05}), model, batches)
    return model.state_dict()


class Collapsing:
    """Batches for ``ssrt`` and ``mcd`` whose target images are all the same one from a step on.

    Args:
        collapse: That step.
        kill_at: Step at which the process kills itself, as nothing else can be that exact.
        last: The checkpoint of the step before, which is written in the background, and waited for then.
    """

    def __init__(self, collapse, kill_at=None, last=None):
        self.collapse, self.kill_at, self.last = collapse, kill_at, last

    def __call__(self, step, rank, ranks):
        if step == self.kill_at:
            while not self.last.exists() or load_checkpoint(self.last)["step"] < step - 1:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        generator = torch.Generator().manual_seed(step)
        source, target = (3 * torch.randn(8, 1, 8, 8, generator=generator) for _ in range(2))
        if step >= self.collapse:
            target = target[:1].expand(8, -1, -1, -1)
        labels = torch.arange(8) % 6
        return {"source_images": source, "source_labels": labels, "target_images": target, "progress": step / 12}


RESUMED = {"mcd": {"generator_steps": 2}, "ssrt": {"interval": 4, "levels": 1, "hidden": 8}}


def run_collapsing(baseline, output, kill_at=None):
    """Train for 12 steps, with a checkpoint at every third; at step 8 ``ssrt`` gives the weights since 4 up."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = method_of(baseline, vit_backbone(), 6, RESUMED[baseline])
    settings = config(
        output,
        steps=12,
        checkpoint_every=3,
        harmonization={"weighting": "gh++"},
        optimizer={"name": "adamw", "lr": 0.001},
    )
    train(settings, model, Collapsing(collapse=5, kill_at=kill_at, last=output / "last.pt"))
    return model
