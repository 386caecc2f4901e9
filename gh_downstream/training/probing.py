"""The gradients of batches at the last checkpoint of a training, which is left as it is."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gh_downstream.harmonization import Probe
from gh_downstream.harmonization.probe import ProbeConfig
from gh_downstream.training.benchmark import unlogged
from gh_downstream.training.checkpoint import CheckpointError, load_checkpoint
from gh_downstream.training.config import ExperimentConfig
from gh_downstream.training.loop import Trainer


def probe_training(build_trainer: Callable[[Any], Trainer], config: ExperimentConfig, batches: int) -> Probe:
    """Measure the gradients of batches at the last checkpoint of a training, and write nothing.

    The steps are those that would come next, or the last ones where too few are left; they are harmonized by GH, so
    that the strengths of losses count after the weighing where they can, and the weights are set back before each.

    Args:
        build_trainer: That of the engine.
        config: The training, with ``output`` the folder of its ``last.pt``.
        batches: Number of batches.

    Raises:
        FileNotFoundError: There is no checkpoint, or there are no data.
        ValueError: They do not fit, or the training measures at the features.
    """
    path, settings = Path(config.output) / "last.pt", ProbeConfig.of(config.harmonization)
    state = load_checkpoint(path)
    with TemporaryDirectory() as output:  # nothing to resume from
        trainer = build_trainer(unlogged(config, output, settings))
        probe = trainer.harmonizer
        assert isinstance(probe, Probe)
        state["harmonizer"] = probe.state_dict()
        try:
            trainer.load_state_dict(state)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit the configuration: {' '.join(str(error).split())}") from error
        trainer.module.train()
        first = max(0, min(trainer.step, config.training.steps - batches))
        for step in range(first, min(first + batches, config.training.steps)):
            trainer.load_state_dict(state)
            trainer.step = step
            seen = len(probe.gramians)
            trainer.train_step(trainer.batches(step, 0, 1))
            # A method may update several times on a batch, and the next measurements would not be independent.
            del probe.gramians[seen + 1 :], probe.factors[seen + 1 :]
    return probe
