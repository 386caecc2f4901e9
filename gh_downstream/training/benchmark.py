"""One training step in every way to harmonize it, as the trainer makes it, for :mod:`gh_downstream.training.costs`."""

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from accelerate.utils import send_to_device
from torch import nn

from gh_downstream.harmonization import HarmonizationConfig, Harmonizer, Weighting
from gh_downstream.harmonization.published import ThreePasses
from gh_downstream.training.config import ExperimentConfig
from gh_downstream.training.costs import SWEEPS, Workload
from gh_downstream.training.loop import Trainer
from gh_downstream.training.model import AdaptedModel

FORK = "GH++, fork at the features"


class PublishedRecipe(HarmonizationConfig):
    """GH++ as its authors published it, with a third backward pass."""

    def build_harmonizer(self, model: nn.Module) -> Harmonizer:
        """As the base, with the backward passes of the published code."""
        plain = super().build_harmonizer(model)
        return ThreePasses(plain.weighting, plain.shared, model=model, scope="all")


def variants() -> dict[str, HarmonizationConfig]:
    """Return the ways to make a step by name, first the plain one; PCGrad only where TorchJD is installed."""
    settings = {
        "plain sum": HarmonizationConfig(),
        "GH, exact": HarmonizationConfig(weighting="gh"),
        "GH++, exact": HarmonizationConfig(weighting="gh++"),
        f"GH++, exact, period {SWEEPS}": HarmonizationConfig(weighting="gh++", period=SWEEPS),
        FORK: HarmonizationConfig(weighting="gh++", measure="features"),
        "GH++ as published, three backward passes": PublishedRecipe(weighting="gh++:official", scope="all"),
    }
    with contextlib.suppress(ImportError):
        settings["PCGrad of TorchJD, exact"] = HarmonizationConfig(weighting="pcgrad")
    return settings


def training_steps(build_trainer: Callable[[Any], Trainer], config: ExperimentConfig, name: str) -> Workload:
    """Build the steps of a configuration as its trainer makes them, all phases of a step together.

    They are those of half of the training, where a gradient reversal has risen, on one batch and from the initial
    weights. ``output``, ``training.init_from`` and ``validation`` are not read, ``harmonization`` is replaced. A model
    that does not fork its features has no such variant, and one that aligns nothing the plain step alone.

    Args:
        build_trainer: That of the engine.
        config: A training.
        name: Names it in the table.

    Raises:
        ValueError: The configuration does not fit its data.
        FileNotFoundError: The data or the weights that it names are not there.
        ImportError: What it needs is not installed.
    """
    settings = variants()
    plain, *others = settings

    with TemporaryDirectory() as output:  # nothing to resume from
        first = build_trainer(unlogged(config, output, settings[plain]))
        model = first.module.train()
        initial = copy.deepcopy(model.state_dict())
        start = first.step = config.training.steps // 2
        batch = send_to_device(first.batches(start, 0, 1), first.accelerator.device)
        optimizer = first.optimizer.optimizer  # One for all, whose state is in memory once.
        trainers = {plain: first}
        for variant in others if _aligns(first, batch) else ():
            if settings[variant].at_features and not _forks(model):
                continue
            model.harmonize_features = _at_features(settings[variant])
            changed = unlogged(config, output, settings[variant])
            trainers[variant] = Trainer(changed, model, optimizer, first.batches, callbacks=first.callbacks)

    def reset() -> None:
        model.load_state_dict(initial)
        for trainer in trainers.values():
            trainer.step = start

    def step(trainer: Trainer, harmonize_features: Weighting | None) -> None:
        model.harmonize_features = harmonize_features
        trainer.train_step(dict(batch))

    mode = config.training.mixed_precision
    precision = "float32" if mode == "no" else f"mixed precision ({mode})"
    return Workload(
        name,
        model,
        {variant: partial(step, trainer, _at_features(settings[variant])) for variant, trainer in trainers.items()},
        reset,
        f"{type(model).__name__}, {_contents(batch)}, {precision}",
    )


def unlogged(config: ExperimentConfig, output: str, harmonization: HarmonizationConfig) -> ExperimentConfig:
    """Return a configuration for steps that are taken to look at them alone, in another folder and harmonized so."""
    steps = config.training.steps
    quiet: dict[str, Any] = {"log_every": steps, "checkpoint_every": steps, "evaluate_every": None, "best_metric": None}
    training = dataclasses.replace(config.training, **quiet, init_from=None, wandb=None)
    no_validation: dict[str, Any] = {"validation": {}}
    return dataclasses.replace(config, output=output, training=training, harmonization=harmonization, **no_validation)


def _aligns(trainer: Trainer, batch: Mapping[str, Any]) -> bool:
    """Whether a step has losses of the alignment, in one of its phases; it is taken, plain."""
    found = []
    handle = trainer.module.register_forward_hook(lambda model, given, losses: found.append(losses.get("alignment")))
    trainer.train_step(dict(batch))
    handle.remove()
    return any(found)


def _forks(model: AdaptedModel) -> bool:
    """Whether a model can harmonize at its features: it takes the weighting when it is built."""
    return "harmonize_features" in inspect.signature(type(model)).parameters


def _at_features(settings: HarmonizationConfig) -> Weighting | None:
    return settings.build_weighting() if settings.at_features else None


def _contents(batch: Mapping[str, Any]) -> str:
    """Numbers and sizes of the images and texts of a batch."""
    return ", ".join(
        f"{len(value)} {key.replace('_', ' ')} of {' x '.join(map(str, value[0].shape))}"
        for key, value in batch.items()
        if key.endswith(("_images", "_tokens"))
    )
