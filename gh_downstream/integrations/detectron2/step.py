"""The step of Detectron2's ``SimpleTrainer`` and ``AMPTrainer``, or of a trainer like ALDI's, harmonized."""

import logging
import time
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer, TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gh_downstream.harmonization import HarmonizationConfig, Measurements, Probe, Sum, group_losses
from gh_downstream.integrations.detectron2.config import with_keys
from gh_downstream.integrations.joint_loss import plain_sum

logger = logging.getLogger(__name__)


def build_step(trainer: SimpleTrainer, settings: HarmonizationConfig) -> "HarmonizedStep | ForkedStep":
    """Return the step for a trainer; it is not in its place yet.

    Args:
        trainer: A ``SimpleTrainer`` or ``AMPTrainer``, or a subclass with the same ``run_step``, or with one of its own
            that calls ``run_model`` and ``do_backward``. With ``measure="features"`` any.
        settings: What to do; not weighting ``none``.

    Raises:
        TypeError: The trainer is another one.
        ValueError: The trainer is harmonized already, a setting cannot be used with it or its model, or the patterns of
            the shared parameters match none.
    """
    if settings.measure == "features":
        return ForkedStep(trainer)
    kind = trainer.__class__
    replaced = isinstance(trainer, SimpleTrainer) and kind.run_step in (SimpleTrainer.run_step, AMPTrainer.run_step)
    if not replaced and not all(callable(getattr(kind, name, None)) for name in ("run_model", "do_backward")):
        raise TypeError(
            f"{kind.__name__} has a run_step of its own, which cannot be replaced: call "
            "gh_downstream.Harmonizer(...).backward({...}) in it in the place of losses.backward()"
        )
    if {"run_step", "do_backward"} & trainer.__dict__.keys():
        raise ValueError("this trainer is harmonized already: use the hook or the function, once")
    return (HarmonizedStep if replaced else HarmonizedParts)(trainer, settings)


class HarmonizedStep:
    """Replaces ``run_step`` of a trainer, which keeps its model, data, optimizer, scaler and iteration.

    The arguments are those of :func:`build_step`.
    """

    def __init__(self, trainer: SimpleTrainer, settings: HarmonizationConfig) -> None:
        module = _inside(trainer.model)
        self.plain = isinstance(settings.build_weighting(), Sum)
        if getattr(module, "harmonize_features", None) is not None:
            raise ValueError(
                "the model harmonizes the gradients at its features already: set GH.MEASURE features, or build it "
                "without harmonize_features"
            )
        ddp = trainer.model
        if not self.plain and module is not ddp and ddp.broadcast_buffers and any(True for _ in module.buffers()):
            raise ValueError(
                "harmonization runs the module inside DistributedDataParallel, which then broadcasts no buffers: build "
                "it with broadcast_buffers=False, as Detectron2 does"
            )
        # As hooks do: the trainer owns its step, so the step must not own the trainer.
        self.trainer: Any = trainer if isinstance(trainer, weakref.ProxyTypes) else weakref.proxy(trainer)
        self.settings = settings
        self.count = self._seen = 0
        self.losses: dict[str, Tensor] = {}
        try:
            self._harmonizer = settings.build_harmonizer(module)
        except ValueError as error:
            raise ValueError(with_keys(f"GH: {error}", "GH", vars(settings))) from None
        self.measurements = self._harmonizer.measurements

    def install(self) -> None:
        """Take the place of the trainer's own."""
        self.trainer.run_step = self

    def remove(self) -> None:
        """Give the trainer its own back."""
        del self.trainer.run_step

    def __call__(self) -> None:
        """One iteration: data, losses, gradients, metrics, update."""
        trainer = self.trainer
        assert trainer.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        data = next(trainer._data_loader_iter)
        data_time = time.perf_counter() - start

        if trainer.zero_grad_before_forward:
            trainer.optimizer.zero_grad()
        with self._precision():
            losses, inside = self._forward(data)
        if not trainer.zero_grad_before_forward:
            trainer.optimizer.zero_grad()
        self._backward(losses, inside)
        if getattr(trainer, "log_grad_scaler", False):
            get_event_storage().put_scalar("[metric]grad_scaler", self._scaler.get_scale())
        trainer.after_backward()

        # The model's own losses: what is weighted is never logged as a loss.
        if trainer.async_write_metrics:
            trainer.concurrent_executor.submit(trainer._write_metrics, losses, data_time, iter=trainer.iter)
        else:
            trainer._write_metrics(losses, data_time)

        self._scaler.step(trainer.optimizer)
        self._scaler.update()
        self.count += 1

    def probe(self, batches: int) -> Probe:
        """Measure batches of the trainer, with settings whose harmonizer is a probe; the weights stay as they are."""
        for _ in range(batches):
            with EventStorage(self.trainer.iter), self._precision():
                inside = self._forward(next(self.trainer._data_loader_iter))[1]
            self._harmonizer.weigh(self._grouped(inside))
        assert isinstance(self._harmonizer, Probe)
        return self._harmonizer

    def check_taken(self, trainer: TrainerBase) -> None:
        """Raise a RuntimeError where the trainer, that of this step or the one around it, took a step of its own."""
        if self.count == self._seen:
            raise RuntimeError(
                f"{trainer.__class__.__name__}.run_step does not run the step of its inner trainer, which is the one "
                "that is harmonized: call super().run_step() in it, or "
                "gh_downstream.Harmonizer(...).backward({...}) in the place of losses.backward()"
            )
        self._seen = self.count

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a restart; tensors, numbers and dictionaries of them."""
        return self._harmonizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        if "tasks" in state:  # Not in that of a training with GH.MEASURE features.
            self._harmonizer.load_state_dict(state)

    @property
    def _scaler(self) -> torch.amp.GradScaler:
        """The trainer's; without one that of a training that is not scaled, which hands all on."""
        return self.trainer.grad_scaler if isinstance(self.trainer, AMPTrainer) else torch.amp.GradScaler(enabled=False)

    def _precision(self) -> AbstractContextManager[None]:
        """That of the forward pass."""
        if not isinstance(self.trainer, AMPTrainer):
            return nullcontext()
        return torch.autocast(next(self.trainer.model.parameters()).device.type, dtype=self.trainer.precision)

    @property
    def _warming_up(self) -> bool:
        return self.trainer.iter < max(self.settings.warmup_steps, _burn_in_iters(_inside(self.trainer.model)))

    def _forward(self, data: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses, and the same before they passed DistributedDataParallel."""
        model = self.trainer.model
        module = _inside(model)
        if module is model or not (self.plain or self._warming_up):
            losses = _as_dict(module(data))
            return losses, losses
        inside: list[Any] = []
        handle = module.register_forward_hook(lambda module, arguments, output: inside.append(output))
        try:
            losses = _as_dict(model(data))
        finally:
            handle.remove()
        return losses, _as_dict(inside[-1])

    def _backward(self, losses: dict[str, Tensor], inside: dict[str, Tensor]) -> None:
        scale, total = self._scaler.scale, plain_sum(losses)
        if self._warming_up:
            self._warn_of_tasks(losses)
            scale(total).backward()
            return
        tasks = self._grouped(inside)
        if not self.losses and comm.is_main_process():
            logger.info(self.settings.describe(inside, _inside(self.trainer.model)))
        self.losses = {task: loss.detach() for task, loss in tasks.items()}
        if not self.plain:
            self._harmonizer.backward(tasks, scale=scale)
            return
        self._harmonizer.weigh(tasks, scale)
        scale(total).backward()

    def _grouped(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        try:
            return group_losses(losses, self.settings.tasks)
        except ValueError as error:
            raise ValueError(with_keys(str(error), "GH", vars(self.settings))) from None

    def _warn_of_tasks(self, losses: dict[str, Tensor]) -> None:
        """Alignment may begin after the warm-up, so that this is no error yet; a typo should not wait until then."""
        if self.count == 0:
            try:
                self._grouped(losses)
            except ValueError as error:
                logger.warning("harmonization will fail when it begins, unless the losses change: %s", error)


class HarmonizedParts(HarmonizedStep):
    """Takes the place of ``run_model`` and ``do_backward`` of a trainer like ALDI's, whose own ``run_step`` calls them.

    ``run_model(data)`` returns the losses, of one or several passes of the model, and ``do_backward(losses)`` runs
    backward on their sum.
    """

    def __init__(self, trainer: SimpleTrainer, settings: HarmonizationConfig) -> None:
        if not getattr(trainer, "backward_at_end", True):
            raise ValueError(
                "SOLVER.BACKWARD_AT_END False runs backward on each part of a batch alone, so that nothing is left to "
                "harmonize: set SOLVER.BACKWARD_AT_END True; if memory is short, make SOLVER.IMS_PER_BATCH smaller"
            )
        super().__init__(trainer, settings)

    def install(self) -> None:
        """Take the place of the trainer's own."""
        self.trainer.run_model, self.trainer.do_backward = self._run_model, self._do_backward

    def remove(self) -> None:
        """Give the trainer its own back."""
        del self.trainer.run_model, self.trainer.do_backward

    def _forward(self, data: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        self._run_model(data)
        return self._losses, self._losses

    def _run_model(self, data: Any) -> Any:
        model = self.trainer.model
        local = isinstance(model, DistributedDataParallel) and not (self.plain or self._warming_up)
        with model.no_sync() if local else nullcontext():
            output = self.trainer.__class__.run_model(self.trainer, data)
        self._losses = _as_dict(output)
        return output

    def _do_backward(self, losses: Tensor) -> None:
        self._backward(self._losses, self._losses)
        self.count += 1


class ForkedStep:
    """Reads what a model measures that harmonizes at its features itself; the step is the trainer's own.

    The model has the attributes ``harmonize_features``, not None, and ``measurements``, to which it adds a report in
    each backward pass after its burn-in.

    Raises:
        ValueError: The model of the trainer does not harmonize at its features.
    """

    def __init__(self, trainer: SimpleTrainer) -> None:
        module = _inside(trainer.model)
        if getattr(module, "harmonize_features", None) is None:
            raise ValueError(
                f"GH.MEASURE features needs a model that forks its features, but {type(module).__name__} does not: "
                "build DomainAdaptiveRCNN or another model of gh_downstream from the config that says so, or with "
                "harmonize_features=; or set GH.MEASURE parameters"
            )
        self.model: Any = module
        self.losses: dict[str, Tensor] = {}
        self.measurements: Measurements = module.measurements  # type: ignore[assignment]
        self._seen = self.measurements.total

    def install(self) -> None:
        """Nothing takes the place of anything."""

    remove = install

    def check_taken(self, trainer: TrainerBase) -> None:
        """Raise a RuntimeError where the step that a trainer took was not measured."""
        if trainer.iter < _burn_in_iters(self.model):
            return
        if self.measurements.total == self._seen:
            raise RuntimeError(
                "no gradient came back through the fork of the model, so that nothing was harmonized: the trainer has "
                "to run backward on the sum of all losses that the model returns"
            )
        self._seen = self.measurements.total

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a restart."""
        return {"measurements": self.measurements.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.measurements.load_state_dict(state["measurements"])


def _inside(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _burn_in_iters(module: nn.Module) -> int:
    """Iterations in which the alignment of a model does not reach what it shares with the task."""
    return getattr(module, "burn_in_iters", 0)


def _as_dict(output: Any) -> dict[str, Tensor]:
    return {"total_loss": output} if isinstance(output, Tensor) else output
