"""The training loop of the workloads that bring no trainer of their own, on accelerate."""

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import broadcast, send_to_device, set_seed
from torch import Tensor, nn
from torch.optim import Optimizer

from gh_downstream.files import only_writer, write_atomically
from gh_downstream.harmonization import Sum, group_losses, named_losses
from gh_downstream.harmonization.distributed import all_reduce_mean
from gh_downstream.training.averaging import WeightAverage
from gh_downstream.training.checkpoint import CheckpointError, CheckpointWriter, load_last, load_weights
from gh_downstream.training.config import ExperimentConfig, config_dict, config_hash, due
from gh_downstream.training.distributed import build_accelerator, wait_for_everyone
from gh_downstream.training.finite import FiniteCheck
from gh_downstream.training.metrics import MetricsLog, import_wandb, score_of
from gh_downstream.training.model import AdaptedModel, Callback, Phase, trained_alone
from gh_downstream.training.optimization import clip_gradients, learning_rate_factor, learning_rates, set_learning_rate
from gh_downstream.training.sampling import Batches, derive_seed, step_loader
from gh_downstream.training.stopping import Stopped, StopSignals

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a model whose losses have a task and an alignment side, and resumes where a killed run stopped.

    ::

        Trainer(config, model, build_optimizer(config.optimizer, model.parameters()), batches, evaluate).run()

    The folder ``config.output`` gets ``config.yaml``, ``metrics.jsonl``, TensorBoard's files, ``last.pt`` with all that
    a resumed run needs, ``previous.pt``, the one before it, and ``best.pt`` with the weights of the best evaluation. A
    ``last.pt`` that is there already is resumed from; an evaluation that was cut off, or failed, comes first then.
    SIGTERM and Ctrl-C end a run with a checkpoint after the step that it is in. On CPU the result is bit for bit that
    of an uninterrupted run: order of the data, learning rate and random numbers are functions of the step, and
    everything else is in the checkpoint, which is written from a copy while the next steps are made. With
    ``training.ema`` the averaged weights are evaluated and in ``best.pt``, and ``last.pt`` has both.

    Runs in as many processes as ``torchrun`` or ``accelerate launch`` starts.

    Args:
        config: The run.
        model: See :class:`~gh_downstream.training.AdaptedModel`. Seed before building it.
        optimizer: Over parameters of ``model``, with the learning rates after the warm-up.
        batches: Returns the batch of a step for a rank, which :func:`~gh_downstream.training.batch_samples` helps to
            choose. It runs in worker processes, and has to depend on its arguments and the global random generators
            only: these are seeded from step and rank before each call. An entry ``file_names`` is not given to the
            model; errors name these files, and the images a second are counted by them.
        evaluate: Returns metrics of the model, which is in evaluation mode without gradients. Called in every process;
            what it returns in the main one counts.
        callbacks: What the workload adds.

    Raises:
        CheckpointError: ``last.pt`` or ``training.init_from`` is damaged or does not fit, or ``last.pt`` belongs to
            another configuration.
        FileNotFoundError: There is no ``training.init_from``.
        ImportError: ``training.wandb`` is set, but wandb is not installed.
        ValueError: A setting contradicts the model or the machine.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: AdaptedModel,
        optimizer: Optimizer,
        batches: Batches,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        if config.training.best_metric is not None and evaluate is None:
            raise ValueError("training.best_metric needs an evaluation")
        if config.training.wandb is not None:
            import_wandb()
        self.config, self.module = config, model
        self.batches, self.evaluate, self.callbacks = batches, evaluate, callbacks
        self.accelerator = build_accelerator(config.training.mixed_precision)
        self.step = 0
        self.metrics: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._finite = FiniteCheck(self.accelerator, config.output)
        self._stop, self._writer = StopSignals(), CheckpointWriter()
        self._saved = self._signal = 0
        self._unevaluated: dict[str, float] | None = None
        self._last = Path(config.output) / "last.pt"
        state = load_last(config)
        if state is None and config.training.init_from is not None:
            load_weights(model, Path(config.training.init_from))
        settings = config.harmonization
        if settings.at_features and model.harmonize_features is None:
            raise ValueError("harmonization.measure=features needs a model that forks its features")
        harmonized = settings.weighting != "none" and not settings.at_features
        self.harmonizer = settings.build_harmonizer(model) if harmonized else None
        # Published trainings have them in the losses; and on parameters that are not weighed nothing can come after.
        plain = self.harmonizer is None or isinstance(self.harmonizer.weighting, Sum)
        own = settings.scope == "shared" and not settings.shared
        self._trade_offs_after = model.trade_offs_after and own and not plain
        self._measurements = model.measurements if self.harmonizer is None else self.harmonizer.measurements
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self._average = None if config.training.ema is None else WeightAverage(model, config.training.ema)
        if state is not None:
            try:
                self.load_state_dict(state)
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise CheckpointError(f"{self._last} does not fit this model or optimizer: {reason}") from error

    def run(self) -> dict[str, float]:
        """Train up to the last step; of a run that has got there before, only say so.

        Returns:
            The metrics of the last evaluation.

        Raises:
            Stopped: After SIGTERM or Ctrl-C.
            OSError: Another training writes into the folder, or a file cannot be written; the checkpoints are there.
            ValueError: A loss or the gradient is not finite, a callback stops the training, there is nothing to
                harmonize, ``harmonization.tasks`` do not fit the losses, or ``training.best_metric`` is no metric of
                the evaluation. Nothing of that step is saved.
        """
        settings = self.config.training
        if self.step >= settings.steps and self._unevaluated is None:
            if self.accelerator.is_main_process:
                logger.info("%s: already finished at step %d", self.config.output, self.step)
            return self.metrics
        self.module.train()
        with self._stop, self._opened() as log:
            if self._unevaluated is not None:
                self._end_step(self._unevaluated, log)
                self._writer.wait()
            elif self.step == 0 and settings.evaluates_first and self.evaluate is not None:
                self._evaluate(self.evaluate)
                if log is not None:
                    log.write_evaluation(0, self.metrics)
            for batch in step_loader(self.batches, self.step, settings, self.accelerator):
                if isinstance(batch, Exception):
                    raise batch
                images = len(batch.get("file_names", ())) * self.accelerator.num_processes
                line = self.train_step(batch)
                if log is not None:
                    log.advance(self.step, images)
                self._end_step(line, log)
                if self._signal:
                    break
            self._writer.wait()
            wait_for_everyone(self.accelerator)
            if self._signal and (self.step < settings.steps or self._unevaluated is not None):
                if log is not None:
                    name = signal.Signals(self._signal).name
                    logger.info("%s: stopped by %s after step %d; call again to go on", self._last, name, self.step)
                raise Stopped(128 + self._signal)
        return self.metrics

    def _end_step(self, line: dict[str, float], log: MetricsLog | None) -> None:
        """Evaluate, log and save what is due after a step.

        It is saved before it is evaluated, which may fail; its lines wait in the checkpoint: a resumed run evaluates.
        """
        training = self.config.training
        last = self.step == training.steps
        evaluate = self.evaluate if last or due(self.step, training.evaluate_every) else None
        if evaluate is not None:
            if self._unevaluated is None:
                self._unevaluated = line
                self._checkpoint(log)
            if self._signal:
                return
            self._evaluate(evaluate)
            self._unevaluated = None
        if log is not None and line:
            log.write(self.step, line)
        if log is not None and evaluate is not None:
            log.write_evaluation(self.step, self.metrics)
        if last or (evaluate is None and (self._signal or due(self.step, training.checkpoint_every))):
            self._checkpoint(log)

    def _checkpoint(self, log: MetricsLog | None) -> None:
        self._finite.check_weights(self.step, [self.module, self._evaluated])
        if log is not None:
            log.flush()
            previous = None if self._saved == self.step else self._last.with_name("previous.pt")
            self._writer.save(self._last, {"config": config_dict(self.config)} | self.state_dict(), previous)
        self._saved = self.step

    def train_step(self, batch: dict[str, Any]) -> dict[str, float]:
        """Update the weights, once or in each phase of the model: a step of :meth:`run`, which sees to all else.

        Args:
            batch: What ``batches`` returns; its entries that the model is not given are taken out of it.

        Returns:
            The metrics where ``training.log_every`` makes them due, otherwise none.

        Raises:
            ValueError: As :meth:`run`.
        """
        accelerator, training = self.accelerator, self.config.training
        set_seed(derive_seed(training.seed, "model", self.step, accelerator.process_index))
        files = batch.pop("file_names", ())
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        for callback in self.callbacks:
            callback.on_batch(batch, None if self._average is None else self._average.module)
        set_learning_rate(self.optimizer, learning_rate_factor(self.config.optimizer, self.step, training.steps))
        losses: dict[str, Tensor] = {}
        phases: Sequence[Phase | None] = self.module.phases or [None]
        for phase in phases:
            with trained_alone(self.module, phase) as trained:
                found, norm = self._update(batch, files, phase, trained)
            losses |= found
        self.step += 1
        self._signal = self._stop.agreed(accelerator.device)
        if self._average is not None:
            self._average.update(self.step)
        logged = self.step == training.steps or due(self.step, training.log_every)
        seen = logged or self._signal > 0 or due(self.step, training.evaluate_every, training.checkpoint_every)
        if seen:
            self._finite.check()
        for callback in self.callbacks:
            callback.on_step_end(seen)
        return self._line(losses, norm) if logged else {}

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a restart."""
        return {
            "step": self.step,
            "model": self.module.state_dict(),
            "average": None if self._average is None else self._average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "harmonizer": None if self.harmonizer is None else self.harmonizer.state_dict(),
            "measurements": self.module.measurements.state_dict(),
            "best": self._best,
            "metrics": self.metrics,
            "unevaluated": self._unevaluated,
            "callbacks": [callback.state_dict() for callback in self.callbacks],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.module.load_state_dict(state["model"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.module.measurements.load_state_dict(state["measurements"], self.accelerator.device)
        if self.harmonizer is not None:
            self.harmonizer.load_state_dict(state["harmonizer"])
        for callback, content in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(content)
        self.step, self._best, self.metrics = state["step"], state["best"], state["metrics"]
        self._saved, self._unevaluated = self.step, state.get("unevaluated")

    @property
    def _scaler(self) -> torch.amp.GradScaler:
        """The scaler of fp16; otherwise one that does nothing."""
        return self.accelerator.scaler or torch.amp.GradScaler(enabled=False)

    @property
    def _evaluated(self) -> nn.Module:
        return self.module if self._average is None else self._average.module

    @contextmanager
    def _opened(self) -> Iterator[MetricsLog | None]:
        """The log in the main process, which alone writes into the folder."""
        if not self.accelerator.is_main_process:
            yield None
            return
        output, steps, content = self._last.parent, self.config.training.steps, config_dict(self.config)
        with only_writer(output):
            write_atomically(output / "config.yaml", yaml.safe_dump(content, sort_keys=False))
            begins = f"resumes after step {self.step}" if self.step else "begins"
            logger.info("%s: %s, to step %d, configuration %s", output, begins, steps, config_hash(self.config))
            logged = self.step - (self._unevaluated is not None) if self.step else None
            with MetricsLog(output, logged, steps, self.config.training.wandb, content) as log, self._writer:
                yield log

    def _update(
        self, batch: dict[str, Any], files: Sequence[str], phase: Phase | None, trained: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Update the weights once; the losses by name, and the norm of the gradient."""
        accelerator, settings = self.accelerator, self.config.harmonization
        harmonized = settings.weighting != "none" and self.step >= settings.warmup_steps
        if phase is not None:
            batch = batch | {"phase": phase.name}
            harmonized = harmonized and phase.harmonized
        # The harmonizer runs backward twice, which DistributedDataParallel allows without synchronization only; nor
        # does it allow that the parameters which are trained change.
        local = self.harmonizer is not None and harmonized
        self.module.measured_tasks = settings.tasks if local and self._trade_offs_after else None
        with accelerator.no_sync(self.model) if local or phase is not None else nullcontext():
            by_task = self.model(**batch)
            losses = named_losses(by_task)
            self._finite.watch(self.step + 1, losses, files)
            divided = settings.weighting != "none" and (phase is None or phase.harmonized)
            totals = group_losses(by_task, settings.tasks if divided else None)
            if harmonized and len(totals) < 2:
                raise ValueError(
                    f"harmonization.weighting is {settings.weighting}, but step {self.step + 1} has only "
                    f"{', '.join(totals)} losses: set harmonization.weighting=none where nothing is aligned"
                )
            if harmonized and self._measurements.total == 0 and accelerator.is_main_process:
                logger.info(settings.describe(by_task, self.module))
            if local and self.harmonizer is not None:
                self.harmonizer.backward(totals, self.module.trade_offs, self._scaler.scale)
            else:
                accelerator.backward(torch.stack(list(totals.values())).sum())
        if phase is not None and not local:
            all_reduce_mean([parameter.grad for parameter in trained if parameter.grad is not None])
        accelerator.unscale_gradients()
        norm = clip_gradients(self.module.parameters(), self.config.optimizer.clip_norm)
        if not self._scaler.is_enabled():  # A loss scaler skips the step of a gradient that is not finite.
            self._finite.watch(self.step + 1, {"gradient norm": norm}, files)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return losses, norm

    def _line(self, losses: dict[str, Tensor], norm: Tensor) -> dict[str, float]:
        values = self.accelerator.reduce(torch.stack([x.detach().float() for x in losses.values()]), "mean").tolist()
        line = dict(zip(losses, values, strict=True)) | {"total": sum(values), "grad_norm": norm.item()}
        for callback in self.callbacks:
            line |= callback.metrics()
        line |= {name: value.item() for name, value in self.module.figures.items()} | learning_rates(self.optimizer)
        return line | self._measurements.read()

    def _evaluate(self, evaluate: Callable[[nn.Module], Mapping[str, float]]) -> None:
        self._writer.wait()
        model = self._evaluated
        if self.accelerator.num_processes > 1:  # Running statistics differ between ranks; all evaluate one model.
            broadcast(list(model.buffers()))
        model.eval()
        set_seed(derive_seed(self.config.training.seed, "evaluation", self.step))
        with torch.no_grad():
            self.metrics = {name: float(value) for name, value in evaluate(model).items()}
        self.module.train()
        best_metric = self.config.training.best_metric
        if best_metric is None or not self.accelerator.is_main_process:
            return
        if (score := score_of(self.metrics, best_metric)) > self._best.get(best_metric, float("-inf")) and self.step:
            self._best = {best_metric: score}
            weights = {"model" if self._average is None else "average": model.state_dict()}
            state = {"config": config_dict(self.config), "step": self.step, **weights, "metrics": self.metrics}
            self._writer.save(self._last.with_name("best.pt"), state)
