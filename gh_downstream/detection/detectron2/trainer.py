"""What trains with Detectron2: its ``DefaultTrainer`` with two domains, resumable to the bit."""

import logging
import os
import signal
import traceback
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer, TrainerBase, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter, JSONWriter
from torch import nn
from torch.optim import Optimizer

from gh_downstream.detection.detectron2.checkpoint import AFTER_DIVERGENCE, WholeCheckpointer
from gh_downstream.detection.detectron2.checks import check_evaluation, check_training, has_checkpoint
from gh_downstream.detection.detectron2.config import default_cfg
from gh_downstream.detection.detectron2.data import (
    ImageMapper,
    build_paired_train_loader,
    register_coco_datasets,
    register_datasets,
)
from gh_downstream.detection.detectron2.evaluation import APEvaluator, config_hash_of
from gh_downstream.detection.detectron2.metrics import drop_iterations, put_speed
from gh_downstream.detection.detectron2.teacher import MeanTeacher, teacher_weights
from gh_downstream.files import only_writer, write_atomically
from gh_downstream.harmonization import Probe
from gh_downstream.integrations.detectron2.hook import install_gradient_harmonization, probe_gradients
from gh_downstream.training.configs import find_config
from gh_downstream.training.sampling import derive_seed
from gh_downstream.training.stopping import Stopped, StopSignals

logger = logging.getLogger(__name__)

_FINAL = "model_final.pth"  # as Detectron2 names it


def load_cfg(config_file: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a configuration with the nodes of this package, frozen, and register the data sets that it may name.

    Args:
        config_file: YAML file, or the name of a configuration of this package; empty for Detectron2's defaults.
        overrides: Keys and values in turn, such as ``["SOLVER.MAX_ITER", "100"]``; they win over the file.

    Raises:
        FileNotFoundError: The file, or one that it is based on, is missing.
        ValueError: A file is not YAML, a key is unknown, or a value of another type than its default.
    """
    cfg = default_cfg()
    where = config_file = str(find_config(config_file)) if config_file else ""
    try:
        if config_file:
            cfg.merge_from_file(config_file, allow_unsafe=False)
        where = "on the command line"
        for key in overrides[::2]:  # which have no defaults, and a key without is not taken from the command line
            node, _, name = key.rpartition(".")
            if node == "GH.TASKS":
                cfg.GH.TASKS.setdefault(name, [])
            elif node == "TEACHER.CLASS_THRESHOLDS":
                cfg.TEACHER.CLASS_THRESHOLDS.setdefault(name, 0.0)
        cfg.merge_from_list(list(overrides))
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not a YAML file that loads safely: {' '.join(str(error).split())}") from None
    except (AttributeError, TypeError, RecursionError, UnicodeDecodeError):  # where yacs takes a mapping for granted
        raise ValueError(
            f"{where}: it, or what its _BASE_ names, is not made of sections, keys and values like Detectron2's, or is "
            "based on itself"
        ) from None
    except (KeyError, AssertionError, ValueError) as error:  # what yacs raises on a key or a value
        raise ValueError(f"{where}: {error.args[0] if error.args else error}") from None
    register_datasets()
    register_coco_datasets(cfg)
    cfg.freeze()
    return cfg


def train(cfg: CfgNode, resume: bool = False) -> Mapping[str, Any]:
    """Train as a configuration says, harmonized where it says so.

    Args:
        cfg: From :func:`load_cfg`.
        resume: Go on from the last checkpoint in ``OUTPUT_DIR``, if there is one.

    Returns:
        The last results by data set, or of the only data set; empty in other processes than the first.

    Raises:
        FileNotFoundError, ValueError: Data or ``MODEL.WEIGHTS`` are missing, or the configuration cannot be used.
        OSError: Another training writes into the folder, or a file cannot be written.
        Stopped: After SIGTERM or Ctrl-C.
    """
    with only_writer(cfg.OUTPUT_DIR) if comm.is_main_process() else nullcontext():
        check_training(cfg, resume)
        with _named_mistakes():
            trainer = DomainAdaptiveTrainer(cfg)
        install_gradient_harmonization(trainer, trainer.cfg)
        trainer.resume_or_load(resume)
        if comm.is_main_process():
            write_atomically(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump(sort_keys=False))
        try:
            trainer.train()
        except FloatingPointError as error:
            message = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"{message}; nothing of it is saved; {AFTER_DIVERGENCE}") from error
    return getattr(trainer, "_last_eval_results", {})


def evaluate(cfg: CfgNode, resume: bool = False) -> Mapping[str, Any]:
    """Evaluate ``MODEL.WEIGHTS``, or with ``resume`` the last checkpoint in ``OUTPUT_DIR``, on ``DATASETS.TEST``.

    With ``resume`` the mean teacher is taken, if there is one. The results go into ``OUTPUT_DIR/evaluation``; those of
    the training stay as they are. They are returned as by :func:`train`.
    """
    check_evaluation(cfg, resume)
    with _named_mistakes():
        model = DomainAdaptiveTrainer.build_model(cfg)
    checkpointer = WholeCheckpointer(model, cfg.OUTPUT_DIR, evaluates=True)
    rest = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    if teacher := teacher_weights(rest):
        model.load_state_dict(teacher)
        logger.info("evaluating the mean teacher of the checkpoint")
    folder = os.path.join(cfg.OUTPUT_DIR, "evaluation")
    if comm.is_main_process():
        write_atomically(Path(folder) / "config.yaml", cfg.dump(sort_keys=False))
    evaluators = [APEvaluator(name, folder, config_hash_of(cfg)) for name in cfg.DATASETS.TEST]
    return DomainAdaptiveTrainer.test(cfg, model, evaluators)


def probe(cfg: CfgNode, batches: int) -> Probe:
    """Measure the gradients of batches at the last checkpoint in ``OUTPUT_DIR``, and write nothing.

    Raises:
        FileNotFoundError, ValueError: There is no checkpoint or data, or they do not fit.
    """
    if not has_checkpoint(cfg):
        raise FileNotFoundError(f"{cfg.OUTPUT_DIR} has no last_checkpoint to measure at")
    with _named_mistakes():
        trainer = DomainAdaptiveTrainer(cfg)
    DefaultTrainer.resume_or_load(trainer)  # Ours would cut off what was logged after the checkpoint.
    trainer.data_loader.start = trainer.iter = trainer.start_iter
    if trainer.teacher is not None:
        trainer.teacher.before_step()
    if cfg.SEED >= 0:
        seed_all_rng(derive_seed(cfg.SEED, "step", trainer.iter, 0))
    return probe_gradients(trainer, cfg, batches)


@contextmanager
def _named_mistakes() -> Iterator[None]:
    """Detectron2 asserts what its values may be, or looks them up."""
    try:
        yield
    except (AssertionError, KeyError) as error:
        said = " ".join(str(error).split()) or traceback.extract_tb(error.__traceback__)[-1].line
        raise ValueError(f"Detectron2 cannot build what this configuration describes: {said}") from error


class DomainAdaptiveTrainer(DefaultTrainer):
    """A ``DefaultTrainer`` whose batches hold source and target images, with average precision as its evaluation.

    It differs from its base in this:

    - The batches are those of :func:`build_paired_train_loader`. With ``SEED`` at least 0 the initial weights are a
      function of the seed; the batches, their augmentation and every random number of a step are functions of the seed
      and the iteration, so that a training that was killed resumes to the result that it would have had; on a CPU to
      the last bit.
    - With ``TEACHER.ENABLED`` a :class:`MeanTeacher` labels the target, and it is the teacher that is evaluated.
    - SIGTERM and Ctrl-C end it after the step that it is in, with a checkpoint.
    - It runs on several processes of a CPU, and with ``SOLVER.AMP`` on a CPU in bfloat16 (with a ``GH.WEIGHTING``).

    Args:
        cfg: With the nodes of this package; see :func:`load_cfg`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # The base builds its DistributedDataParallel with device_ids, which a CPU refuses, and has no hook for it.
        TrainerBase.__init__(self)
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        if cfg.SEED >= 0:
            seed_all_rng(cfg.SEED)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        on_cpu = next(model.parameters()).device.type == "cpu"
        parallel: dict[str, Any] = {"device_ids": None} if on_cpu else {}
        model = create_ddp_model(model, broadcast_buffers=False, **parallel)
        self._trainer = inner_trainer(cfg, model, self.build_train_loader(cfg), optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = WholeCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.stop = StopSignals()
        self.teacher = MeanTeacher.from_config(cfg) if cfg.TEACHER.ENABLED else None
        self.register_hooks([*self.build_hooks(), self.teacher])

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint, or ``MODEL.WEIGHTS``, and set the data to where the training goes on."""
        super().resume_or_load(resume)
        self.data_loader.start = self.start_iter
        if comm.is_main_process():
            drop_iterations(Path(self.cfg.OUTPUT_DIR) / "metrics.json", self.start_iter)

    def train(self) -> Any:
        """Train as the base does, to the last iteration or the first signal."""
        with self.stop:
            if self.start_iter >= self.max_iter and not os.path.exists(os.path.join(self.cfg.OUTPUT_DIR, _FINAL)):
                # Killed between the two checkpoints of the last iteration.
                self.checkpointer.save(_FINAL.removesuffix(".pth"), iteration=self.iter)
            return super().train()

    def run_step(self) -> None:
        """A step whose random numbers (sampled regions, dropout) are a function of the seed and the iteration."""
        if self.cfg.SEED >= 0:
            seed_all_rng(derive_seed(self.cfg.SEED, "step", self.iter, comm.get_rank()))
        super().run_step()

    def build_hooks(self) -> list[HookBase | None]:
        """The hooks of the base; the evaluation takes the teacher, metrics.json every entry of the harmonization."""
        evaluation = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate)
        built = [evaluation if isinstance(hook, hooks.EvalHook) else hook for hook in super().build_hooks()]
        built.insert(1, hooks.CallbackHook(after_step=put_speed))  # after the timer
        place = built.index(evaluation)
        built.insert(place, hooks.CallbackHook(after_step=lambda trainer: trainer._end_on_signal()))
        if comm.is_main_process():
            # A writer takes the latest value of each scalar, so it has to come as often as they do.
            writer, period = JSONWriter(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")), self.cfg.GH.LOG_PERIOD
            built.insert(place - 1, _WriterBeforeSaving([writer], period))
            built.append(hooks.PeriodicWriter([writer], period))
        return built

    def build_writers(self) -> list[EventWriter]:
        """The writers of the base, but for the one that :meth:`build_hooks` runs at the period of the harmonization."""
        return [writer for writer in super().build_writers() if not isinstance(writer, JSONWriter)]

    def _end_on_signal(self) -> None:
        number = self.stop.agreed(next(self.model.parameters()).device)
        if not number:
            return
        self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
        logger.info("stopped by %s after iteration %d; go on with --resume", signal.Signals(number).name, self.iter)
        comm.synchronize()  # whoever ends first has the others ended, who may still save
        raise Stopped(128 + number)

    def _evaluate(self) -> Mapping[str, Any]:
        model = self.model if self.teacher is None or self.teacher.model is None else self.teacher.model
        self._last_eval_results = self.test(self.cfg, model)
        return self._last_eval_results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Scale the schedule to the number of processes as the base does, that of the adaptation with it."""
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if scaled is not cfg:
            factor = num_workers / cfg.SOLVER.REFERENCE_WORLD_SIZE
            scaled.defrost()
            scaled.SOLVER.IMS_PER_BATCH_TARGET = round(cfg.SOLVER.IMS_PER_BATCH_TARGET * factor)
            scaled.DA.BURN_IN_ITERS = round(cfg.DA.BURN_IN_ITERS / factor)
            scaled.GH.WARMUP_STEPS = round(cfg.GH.WARMUP_STEPS / factor)
            scaled.freeze()
        return scaled

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Batches of source and target images."""
        return build_paired_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """The loader of the base, with images read as those of the training."""
        return build_detection_test_loader(cfg, dataset_name, mapper=ImageMapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> APEvaluator:
        """Average precision, class by class."""
        return APEvaluator(dataset_name, cfg.OUTPUT_DIR, config_hash_of(cfg))


class _WriterBeforeSaving(hooks.PeriodicWriter):
    """Writes before a checkpoint is saved, so that a kill costs no entry, but where an evaluation still adds to it."""

    def after_step(self) -> None:
        """Write, unless an evaluation comes."""
        done, period = self.trainer.iter + 1, self.trainer.cfg.TEST.EVAL_PERIOD
        if done == self.trainer.max_iter or period == 0 or done % period:
            super().after_step()

    def after_train(self) -> None:
        """The writer that comes last writes the rest."""


def inner_trainer(cfg: CfgNode, model: nn.Module, loader: Iterable[Any], optimizer: Optimizer) -> SimpleTrainer:
    """Return the trainer of Detectron2's that takes the steps; of ``SOLVER.AMP`` on a CPU one in bfloat16.

    The own step of that one needs CUDA; harmonized ones do not.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return SimpleTrainer(model, loader, optimizer)
    if next(model.parameters()).device.type != "cpu":
        return AMPTrainer(model, loader, optimizer)
    # bfloat16 has the exponents of float32: there is nothing to scale.
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return AMPTrainer(model, loader, optimizer, grad_scaler=scaler, precision=torch.bfloat16)
