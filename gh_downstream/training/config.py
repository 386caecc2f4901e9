"""Configurations: dataclasses filled from YAML files and the command line, checked before anything runs."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

try:
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
except ImportError as error:
    raise ImportError("configurations need omegaconf: pip install 'gh_downstream[training]'") from error

from gh_downstream.harmonization import HarmonizationConfig
from gh_downstream.harmonization.checks import check_numbers, check_one_of
from gh_downstream.training.layers import ConfigError, parse_overrides, read_layers

T = TypeVar("T")


@dataclass
class OptimizerConfig:
    """Optimizer, learning rate over the steps, and gradient clipping.

    Attributes:
        name: ``sgd`` or ``adamw``.
        lr: Learning rate after the warm-up.
        momentum: Momentum of SGD.
        nesterov: Nesterov's momentum of SGD.
        weight_decay: Weight decay.
        decay_all: Whether biases, gains and other vectors decay too, as in much published code.
        warmup_steps: Steps over which the learning rate rises linearly to ``lr``.
        schedule: ``step`` multiplies by ``gamma`` at each milestone, ``cosine`` falls to 0 at the last step, ``inv`` is
            Caffe's: ``lr * (1 + gamma * step) ** -power``.
        milestones: Steps of the schedule ``step``, rising.
        gamma: Factor at each milestone, or that of ``inv``; null for 0.1, or for 0.001 as in CDAN's code.
        power: Exponent of ``inv``.
        clip_norm: Largest norm of the gradient over all parameters; None does not clip.
    """

    name: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0001
    decay_all: bool = False
    warmup_steps: int = 0
    schedule: str = "step"
    milestones: list[int] = field(default_factory=list)
    gamma: float | None = None
    power: float = 0.75
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        check_one_of("name", self.name, ("sgd", "adamw"))
        check_one_of("schedule", self.schedule, ("step", "cosine", "inv"))
        check_numbers(self, lr="> 0", momentum=">= 0, < 1", milestones=">= 1", gamma="> 0", clip_norm="> 0")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, got {list(self.milestones)}")
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError(f"nesterov needs name=sgd with a momentum, got {self.name} with {self.momentum}")
        if self.milestones and self.schedule != "step":
            raise ValueError(f"milestones need schedule=step, got {self.schedule}")


@dataclass
class TrainingConfig:
    """Length, precision and cadence of a run.

    Attributes:
        steps: Number of optimizer steps.
        seed: Seed of everything random.
        mixed_precision: ``no``, ``bf16`` or ``fp16`` (with a loss scaler; not on CPU).
        workers: Processes that load batches, for each process of the training; 0 loads in the training process itself.
            Null takes one for each core that it has for itself, at most 8. The result does not depend on it.
        log_every: Steps between lines of metrics.
        evaluate_every: Steps between evaluations; null evaluates after the last step only.
        evaluate_first: Evaluate what the training starts from too, as step 0; it is never the best. Null does so where
            ``evaluate_every`` is below ``steps``, and it is one evaluation of several.
        checkpoint_every: Steps between checkpoints, each copied into memory and written while the next steps are made;
            the last step always gets one.
        best_metric: Evaluation metric whose highest value so far ``best.pt`` keeps; ``-NAME`` for the lowest one.
        init_from: Checkpoint or state dict whose weights a new run starts from, the averaged ones where it has them.
        ema: Decay of an exponential moving average of the weights, such as 0.999, which is evaluated and exported in
            their place, see :class:`~gh_downstream.training.averaging.WeightAverage`; null for none.
        wandb: Project of Weights & Biases that the metrics go to as well, from the main process; null for none.
    """

    steps: int
    seed: int = 0
    mixed_precision: str = "no"
    workers: int | None = None
    log_every: int = 20
    evaluate_every: int | None = None
    evaluate_first: bool | None = None
    checkpoint_every: int = 500
    best_metric: str | None = None
    init_from: str | None = None
    ema: float | None = None
    wandb: str | None = None

    def __post_init__(self) -> None:
        check_one_of("mixed_precision", self.mixed_precision, ("no", "bf16", "fp16"))
        check_numbers(self, ">= 1", seed=f">= 0, < {2**32}", workers=">= 0", ema="> 0, < 1")

    @property
    def evaluates_first(self) -> bool:
        """Whether step 0 is evaluated."""
        if self.evaluate_first is not None:
            return self.evaluate_first
        return self.evaluate_every is not None and self.evaluate_every < self.steps

    @property
    def loaders(self) -> int:
        """Number of processes that load batches."""
        if self.workers is not None:
            return self.workers
        # A launcher gives each process a single thread; trainings that run side by side have their share as threads.
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return min(8, torch.get_num_threads() if local == 1 else (os.cpu_count() or 1) // local)


@dataclass(kw_only=True)
class ExperimentConfig:
    """What every workload configures; a workload adds its own fields in a subclass, itself ``kw_only=True``.

    Attributes:
        output: Folder of the checkpoints and metrics.
        training: Length, precision and cadence.
        optimizer: Optimizer and learning rate.
        harmonization: What is done about conflicting gradients.
    """

    output: str
    training: TrainingConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    harmonization: HarmonizationConfig = field(default_factory=HarmonizationConfig)

    def __post_init__(self) -> None:
        steps, warmup = self.training.steps, self.optimizer.warmup_steps
        if self.optimizer.schedule == "cosine" and warmup > steps:
            raise ValueError(
                f"optimizer.warmup_steps={warmup} is longer than training.steps={steps}, in which cosine has to fall: "
                f"set optimizer.warmup_steps to at most {steps}"
            )


def due(step: int, *cadence: int | None) -> bool:
    """Whether something that comes every so many steps comes after this one."""
    return any(every is not None and step % every == 0 for every in cadence)


def check_best_metric(config: TrainingConfig, metrics: Sequence[str]) -> None:
    """Raise a ValueError, before anything runs, where ``best_metric`` is no metric of an evaluation known in advance.

    Those that are best when low have a minus before their names.
    """
    if config.best_metric is not None and config.best_metric not in metrics:
        known = f"the evaluation has {', '.join(metrics)}" if metrics else "there is no validation set"
        raise ValueError(f"training.best_metric is {config.best_metric!r}, but {known}")


def load_config(schema: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Fill a dataclass from a YAML file.

    The file may name others as ``_base_: other.yaml`` or ``_base_: [first.yaml, second.yaml]``, relative to itself or
    as configurations of this package (``_base_: retrieval/mini``); it changes what is there, and the second the first.
    A value may name another key (``output: outputs/${training.seed}``), and nothing else in this way: environment
    variables, ``${oc.env:NAME}``, would be written into ``config.yaml`` with their values.

    Args:
        schema: Dataclass with the keys, their types and their defaults; a field without default is mandatory.
        path: The file; None where the overrides say all.
        overrides: ``KEY=VALUE`` with dotted keys, such as ``optimizer.lr=0.01``; they win over the file.

    Returns:
        An instance of ``schema``.

    Raises:
        ConfigError: A file is missing or not YAML, a key is unknown, a value is missing, or of a wrong type or range.
    """
    config: Any = OmegaConf.structured(schema)
    layers = [] if path is None else read_layers(Path(path))
    path = path or "KEY=VALUE"
    for source, layer in [*layers, *parse_overrides(overrides)]:
        content = OmegaConf.to_container(layer)
        try:
            config.merge_with(layer)  # OmegaConf.merge would copy all of it
            wrong = _misplaced(OmegaConf.to_container(config), content)
        except OmegaConfBaseException as error:
            wrong = _misplaced(OmegaConf.to_container(config), content) or _explained(error)
        if wrong:
            raise ConfigError(f"{source}: {wrong}")
    try:
        missing = sorted(OmegaConf.missing_keys(config))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_explained(error)}") from None
    if missing:
        raise ConfigError(f"{path}: no value for {', '.join(missing)}: set it there, or give {missing[0]}=VALUE")
    try:
        return _built(config, "")
    except ConfigError as error:
        raise ConfigError(f"{_blamed(str(error), overrides) or path}: {error}") from None


def config_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as nested dictionaries, lists and scalars."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_hash(config: Any) -> str:
    """Return 12 hexadecimal digits that name what a configuration makes; ``output`` only names the place."""
    content = {key: value for key, value in config_dict(config).items() if key != "output"}
    if tasks := list(config.harmonization.tasks):
        content["tasks"] = tasks  # Their order counts, and that of other keys does not.
    return hashlib.sha256(yaml.safe_dump(content, sort_keys=True).encode()).hexdigest()[:12]


def joined_hash(hashes: Iterable[str]) -> str:
    """Return 12 hexadecimal digits that name several configurations, by their hashes, in their order."""
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:12]


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the full keys in which two dictionaries of :func:`config_dict` differ, with both values or None."""
    flat_before, flat_after = _flat(before), _flat(after)
    keys = [*flat_before, *(key for key in flat_after if key not in flat_before)]
    pairs = {key: (flat_before.get(key), flat_after.get(key)) for key in keys}
    return {key: (old, new) for key, (old, new) in pairs.items() if old != new}


def decisive_changes(before: Mapping[str, Any], config: ExperimentConfig) -> str:
    """Say in which keys a configuration differs from that of a checkpoint, but for those that leave the weights alone.

    Returns what :func:`config_dict` was and is; empty where a run may go on. More steps continue one with the same
    learning rates, except where these depend on the number of steps.
    """
    free = _CADENCE if config.optimizer.schedule == "cosine" else _CADENCE | {"training.steps"}
    found = {key: pair for key, pair in changes(before, config_dict(config)).items() if key not in free}
    return ", ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in found.items())


_CADENCE = {
    "output",
    "max_skipped",
    "evaluation_batch_size",
    *(f"training.{name}" for name in ("workers", "log_every", "evaluate_every", "evaluate_first", "checkpoint_every")),
    *("training.best_metric", "training.wandb"),
}


def _explained(error: OmegaConfBaseException) -> str:
    key, schema = error.full_key, error.object_type
    if dataclasses.is_dataclass(schema) and str(error.key) not in (
        fields := [f.name for f in dataclasses.fields(schema)]
    ):
        return f"unknown key {key}; the keys there are {', '.join(fields)}"
    return f"{key}: {str(error).splitlines()[0]}"


def _misplaced(config: Any, layer: Any, key: str = "") -> str | None:
    """The mistakes that omegaconf takes without a word, or does not say the key of."""
    if isinstance(config, dict) and isinstance(layer, dict):
        found = (_misplaced(config.get(name), value, f"{key}.{name}".lstrip(".")) for name, value in layer.items())
        return next(filter(None, found), None)
    if isinstance(config, dict):
        return f"{key}: a section with keys of its own, got {layer!r}"
    if isinstance(config, bool) and isinstance(layer, (int, float)) and layer not in (0, 1):
        return f"{key}: true or false, got {layer!r}"
    return None


def _blamed(message: str, overrides: Sequence[str]) -> str:
    """The override, the last one, that a complaint which begins with a key is about; empty where it is about none."""
    key = ".".join(filter(None, re.match(r"([\w.]*)(?:: (\w+))?", message).groups()))  # type: ignore[union-attr]
    given = [(f"{override.partition('=')[0]}.", override) for override in overrides]
    found = [override for name, override in given if f"{key}.".startswith(name) or name.startswith(f"{key}.")]
    return f"override {found[-1]!r}" if found else ""


def _built(node: Any, key: str) -> Any:
    """The dataclass of a node; the sections in it are built first, so that a complaint names the innermost one."""
    for name in node:
        if not OmegaConf.is_interpolation(node, name) and isinstance(child := node[name], DictConfig):
            _built(child, f"{key}.{name}".lstrip("."))
    try:
        return OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise ConfigError(_explained(error)) from None
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{key}: {error}" if key else str(error)) from None


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
