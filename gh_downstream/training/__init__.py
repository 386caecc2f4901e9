"""Training for workloads that bring no trainer of their own.

=================  ==================================================================================
``config``         dataclasses filled from YAML and ``KEY=VALUE``; the sections that workloads share
``configs``        the configurations that this package ships, by name
``sampling``       the order of the data as a function of the step, and its batches, made in worker processes
``optimization``   the optimizer, and the learning rate as a function of the step
``model``          what the trainer knows of a workload: :class:`AdaptedModel`, :class:`Phase`, :class:`Callback`
``loop``           :class:`Trainer`: steps, harmonization, evaluation, resuming
``averaging``      an exponential moving average of the weights
``distributed``    the processes that a launcher started
``finite``         losses and gradients that are not finite
``pretrained``     pretrained weights, by file, by package or by torchvision's name
``checkpoint``     checkpoints, weights of an earlier stage
``export``         the model card beside exported weights, and their way to the hub
``metrics``        JSON lines, TensorBoard, Weights & Biases, progress
``jobs``           several trainings at a time
``benchmark``      a step of the trainer in every way to harmonize it
``costs``          time, FLOPs and memory of such steps, as a table
=================  ==================================================================================
"""

from gh_downstream.training.checkpoint import CheckpointError, load_all_weights, load_checkpoint, load_weights
from gh_downstream.training.config import (
    ConfigError,
    ExperimentConfig,
    OptimizerConfig,
    TrainingConfig,
    check_best_metric,
    config_hash,
    joined_hash,
    load_config,
)
from gh_downstream.training.distributed import evaluation_precision, process_state, shared_map
from gh_downstream.training.loop import Trainer
from gh_downstream.training.metrics import read_metrics
from gh_downstream.training.model import AdaptedModel, Callback, Phase
from gh_downstream.training.optimization import build_optimizer, parameter_groups
from gh_downstream.training.sampling import Batches, batch_samples, derive_seed, sample_generator, warn_of_repeats

__all__ = [
    "AdaptedModel",
    "Batches",
    "Callback",
    "CheckpointError",
    "ConfigError",
    "ExperimentConfig",
    "OptimizerConfig",
    "Phase",
    "Trainer",
    "TrainingConfig",
    "batch_samples",
    "build_optimizer",
    "check_best_metric",
    "config_hash",
    "derive_seed",
    "evaluation_precision",
    "joined_hash",
    "load_all_weights",
    "load_checkpoint",
    "load_config",
    "load_weights",
    "parameter_groups",
    "process_state",
    "read_metrics",
    "sample_generator",
    "shared_map",
    "warn_of_repeats",
]
