"""One step of Detectron2's trainers in every way to harmonize it, for :mod:`gh_downstream.training.costs`."""

import copy
import itertools
from collections.abc import Callable, Sequence

from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from gh_downstream.detection.detectron2.adaptation import DomainAdaptation
from gh_downstream.detection.detectron2.data import build_paired_train_loader
from gh_downstream.detection.detectron2.trainer import inner_trainer, load_cfg
from gh_downstream.harmonization import HarmonizationConfig
from gh_downstream.integrations.detectron2.step import build_step
from gh_downstream.training.benchmark import variants
from gh_downstream.training.costs import Workload


def training_steps(config_file: str, overrides: Sequence[str] = ()) -> Workload:
    """Build the adaptation step of a configuration in every way to harmonize it.

    A step is ``run_step`` of Detectron2's ``SimpleTrainer``, or with ``SOLVER.AMP.ENABLED`` of its ``AMPTrainer`` (on a
    CPU in bfloat16), on the first batch and from random weights: forward and backward passes, clipping, update, its
    metrics. ``GH`` is replaced, ``DA.BURN_IN_ITERS`` and ``MODEL.WEIGHTS`` are not read.

    Args:
        config_file: A configuration with target and alignment.
        overrides: Keys and values in turn, as on the command line of Detectron2.

    Raises:
        FileNotFoundError, ValueError: As :func:`load_cfg`, or nothing is aligned.
    """
    changed = ["GH.WEIGHTING", "none", "DA.BURN_IN_ITERS", "0", "MODEL.WEIGHTS", ""]
    cfg = load_cfg(config_file, [*overrides, *changed])
    seed_all_rng(max(cfg.SEED, 0))
    model = build_model(cfg).train()
    if not isinstance(model, DomainAdaptation) or model.alignment is None or not cfg.DATASETS.TARGET:
        raise ValueError("only an adaptation step can be harmonized: the configuration needs a target and an alignment")
    batch = next(iter(build_paired_train_loader(cfg)))
    optimizer = build_optimizer(cfg, model)
    initial = copy.deepcopy(model.state_dict())
    on_cpu = next(model.parameters()).device.type == "cpu"

    def reset() -> None:
        model.load_state_dict(initial)
        optimizer.zero_grad()
        seed_all_rng(max(cfg.SEED, 0))

    def variant(settings: HarmonizationConfig) -> Callable[[], None]:
        trainer = inner_trainer(cfg, model, itertools.repeat(batch), optimizer)
        trainer.iter = 0
        forked = settings.build_weighting() if settings.at_features else None
        if settings.weighting != "none" and forked is None:
            build_step(trainer, settings).install()
        elif cfg.SOLVER.AMP.ENABLED and on_cpu:  # where Detectron2's own step needs CUDA
            build_step(trainer, HarmonizationConfig(weighting="sum", warmup_steps=1)).install()

        def step() -> None:
            model.harmonize_features = forked
            with EventStorage():
                trainer.run_step()

        return step

    targets = sum(entry.get("domain") == "target" for entry in batch)
    height, width = model.preprocess_image(batch).tensor.shape[2:]
    precision = f"mixed precision ({'bf16' if on_cpu else 'fp16'})" if cfg.SOLVER.AMP.ENABLED else "float32"
    return Workload(
        "detectron2",
        model,
        {name: variant(settings) for name, settings in variants().items()},
        reset,
        f"{type(model).__name__} of {cfg.MODEL.BACKBONE.NAME}, {len(batch) - targets} source and {targets} target "
        f"images of {height} x {width} pixels, {precision}",
    )
