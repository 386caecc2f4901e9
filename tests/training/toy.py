"""A tiny workload for the training loop: dropout, batch norm, momentum, random augmentation, two sides of losses."""

import dataclasses
import random

import numpy as np
import torch
from torch import nn

from gh_downstream import GHPlusPlus, fork
from gh_downstream.harmonization import HarmonizationConfig
from gh_downstream.training import (
    AdaptedModel,
    ExperimentConfig,
    OptimizerConfig,
    Trainer,
    TrainingConfig,
    batch_samples,
    build_optimizer,
    sample_generator,
)
from tests.kill import arm

LENGTH, BATCH = 10, 4


def config(output, *, steps=18, harmonization=None, optimizer=None, **training):
    settings = {"workers": 0, "log_every": 2, "evaluate_every": 4, "checkpoint_every": 3, "seed": 5}
    return ExperimentConfig(
        output=str(output),
        training=TrainingConfig(steps=steps, **settings | training),
        optimizer=OptimizerConfig(**{"lr": 0.05, "warmup_steps": 3, "milestones": [8]} | (optimizer or {})),
        harmonization=HarmonizationConfig(**{"weighting": "gh++"} | (harmonization or {})),
    )


class Toy(AdaptedModel):
    """A trunk with a regression head and a discriminator."""

    shared = ("trunk",)

    def __init__(self, random_layers=True, forked=False, aligned=True):
        super().__init__()
        torch.manual_seed(0)
        norms = [nn.BatchNorm1d(8), nn.Dropout(0.3)] if random_layers else []
        self.trunk = nn.Sequential(nn.Linear(4, 8), *norms, nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 1)
        self.discriminator = nn.Linear(8, 1)
        self.register_buffer("seen", torch.zeros(()))
        self.forked, self.aligned = forked, aligned
        self.harmonize_features = GHPlusPlus() if forked else None

    def forward(self, source, labels=None, target=None):
        features = self.trunk(source)
        if not self.training:
            return self.head(features)
        self.seen.lerp_(source.mean(), 0.1)
        for_task, for_alignment = features, torch.cat([features, self.trunk(target)])
        if self.forked:
            for_alignment, for_task = fork(for_alignment, self.harmonize_features, on_report=self.measurements.add)
            for_task = for_task[: len(source)]
        task = {"mse": (self.head(for_task)[:, 0] - labels).square().mean(), "l1": self.head(for_task).abs().mean()}
        domains = torch.cat([torch.ones(len(source)), torch.zeros(len(target))]).to(source)
        logits = self.discriminator(for_alignment)[:, 0]
        alignment = {"domain": -nn.functional.binary_cross_entropy_with_logits(logits, domains)}
        return {"task": task, "alignment": alignment} if self.aligned else {"task": task}


class Batches:
    """Source and target of a step, with noise from all generators that augmentations use."""

    def __init__(self, seed=5, noise=1.0, broken_step=None):
        generator = torch.Generator().manual_seed(0)
        self.data = torch.randn(LENGTH, 4, generator=generator)
        self.seed, self.noise, self.broken_step = seed, noise, broken_step

    def __call__(self, step, rank, ranks):
        samples = batch_samples(step, LENGTH, BATCH, self.seed, rank, ranks)
        source = torch.stack(
            [
                self.data[index] + 0.1 * torch.randn(4, generator=sample_generator(self.seed, step, position))
                for position, index in samples
            ]
        )
        target = source + 1 + self.noise * (torch.rand(4) + random.random() + np.random.rand())
        labels = source.sum(dim=1)
        if step == self.broken_step:
            labels = labels * float("nan")
        names = [f"{index}.png" for _, index in samples]
        return {"source": source, "labels": labels, "target": target.float(), "file_names": names}


def evaluate(model):
    torch.rand(7)  # Evaluation may use random numbers without changing the training.
    points = torch.linspace(-1, 1, 8).reshape(2, 4)
    return {"score": -float((model(points)[:, 0] - points.sum(dim=1)).square().mean())}


def trainer(settings, model=None, batches=None):
    model = model or Toy()
    optimizer = build_optimizer(settings.optimizer, model.parameters())
    return Trainer(settings, model, optimizer, batches or Batches(), evaluate)


def run(output, kill_at=None, **settings):
    """Entry of a child process."""
    torch.set_num_threads(1)
    if kill_at:
        arm(kill_at)
    trainer(config(output, **settings)).run()


def run_rank(rank, output, harmonization, forked, settings):
    """The weights and the metrics of a training in one of several processes, or in a single one."""
    model = Toy(random_layers=False, forked=forked)
    metrics = trainer(config(output, harmonization=harmonization, **settings), model, Batches(noise=0.0)).run()
    return model.state_dict(), metrics


def changed(settings, section, **values):
    """A copy of a configuration with other values in a section."""
    return dataclasses.replace(settings, **{section: dataclasses.replace(getattr(settings, section), **values)})
