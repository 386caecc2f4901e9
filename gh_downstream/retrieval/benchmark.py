"""Ways to make one adaptation step of a dual encoder, for :mod:`gh_downstream.training.benchmark`."""

from __future__ import annotations

import dataclasses

from gh_downstream.harmonization import HarmonizationConfig
from gh_downstream.retrieval.batches import StepBatches
from gh_downstream.retrieval.config import RetrievalConfig
from gh_downstream.retrieval.engine import build_model, load_training_data
from gh_downstream.training import build_optimizer, parameter_groups
from gh_downstream.training.benchmark import Workload, adaptation_workload

_CONTENTS = {
    "source_images": "source images",
    "source_tokens": "source captions",
    "target_images": "target images",
    "target_tokens": "target captions",
}


def adaptation_steps(config: RetrievalConfig) -> Workload:
    """Build the adaptation steps of a configuration on its first batch, from the weights of its encoder.

    ``training.init_from`` is not read, ``harmonization`` is replaced; the steps are those of
    :func:`~gh_downstream.training.benchmark.adaptation_workload`.

    Args:
        config: A training with alignment.

    Raises:
        ValueError: The configuration aligns nothing, asks for another precision, or does not fit its data.
        FileNotFoundError: The data or the weights that are asked for are not there.
    """
    if not any(term.weight for term in config.alignment.values()):
        raise ValueError("only an adaptation step can be harmonized: the configuration needs alignment")
    source, target = load_training_data(config)
    model = build_model(dataclasses.replace(config, harmonization=HarmonizationConfig()))
    batches = StepBatches(source, target, model.encoder, config.batch_size, config.training.seed, config.max_skipped)
    batch = {key: value for key, value in batches(0, rank=0, ranks=1).items() if key not in ("file_names", "skipped")}
    towers = " and ".join(model.alignment.sides)
    height, width = batch["source_images"].shape[2:]
    counts = [f"{len(batch[key])} {name}" for key, name in _CONTENTS.items() if key in batch]
    return adaptation_workload(
        config,
        model,
        build_optimizer(config.optimizer, parameter_groups(model, config.optimizer, config.learning_rates)),
        batch,
        network=f"encoder {config.encoder}, {', '.join(config.alignment)} on {towers} features",
        data=f"{', '.join(counts)}; {height} x {width} pixels, {batch['source_tokens'].shape[1]} tokens",
    )
