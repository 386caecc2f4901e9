"""Gradient harmonization into a Detectron2 trainer that exists."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.utils import comm

from gh_downstream.harmonization import HarmonizationConfig, Probe
from gh_downstream.harmonization.checks import check_at_least
from gh_downstream.harmonization.probe import ProbeConfig
from gh_downstream.integrations.detectron2.config import LOG_PERIOD, settings_of
from gh_downstream.integrations.detectron2.step import ForkedStep, HarmonizedStep, build_step

logger = logging.getLogger(__name__)


def install_gradient_harmonization(
    trainer: TrainerBase, cfg: CfgNode | None = None, **settings: Any
) -> GradientHarmonizationHook | None:
    """Harmonize the gradients of a trainer that is built.

    ::

        trainer = Trainer(cfg)  # a DefaultTrainer, or any subclass
        install_gradient_harmonization(trainer, cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()

    The step of the trainer is replaced; model, data loader, optimizer, loss scaler, iteration and hooks stay. (With
    ``measure="features"`` the step stays too: the model harmonizes itself, and the hook logs it.) Call it before a
    checkpoint is loaded, so that its own state is loaded too.

    Args:
        trainer: A ``DefaultTrainer``, ``SimpleTrainer`` or ``AMPTrainer``, or a subclass; one whose ``run_step`` is its
            own, but calls ``run_model`` and ``do_backward`` as ALDI's does, keeps it, and these two are replaced.
        cfg: As of the hook, and so ``settings``.

    Returns:
        The hook that was registered; None for weighting ``none``, which leaves the trainer untouched.

    Raises:
        ValueError: A setting is wrong, the trainer is harmonized already, or it has loaded a checkpoint to resume. The
            trainer is as before then.
        TypeError: The trainer does not take its steps as Detectron2's do, or as the hook.
    """
    hook = GradientHarmonizationHook(cfg, **settings)
    if hook.settings.weighting == "none":
        return None
    trainer.register_hooks([hook])
    try:
        hook.before_train()
    except Exception:
        trainer._hooks.remove(hook)
        raise
    return hook


def probe_gradients(trainer: TrainerBase, cfg: CfgNode | None = None, batches: int = 32, **settings: Any) -> Probe:
    """Measure the gradients of batches of a trainer that has loaded its weights, and train nothing.

    What is found goes to :func:`gh_downstream.comparison.diagnosis.diagnose`.

    Args:
        trainer: As of :func:`install_gradient_harmonization`, but not harmonized; its loader gives the batches.
        cfg: A config with the node ``GH``, of which the weighting has no effect; or give ``settings``.
        batches: Number of batches.
        **settings: The attributes of :class:`~gh_downstream.harmonization.HarmonizationConfig`.

    Raises:
        ValueError, TypeError: As of :func:`install_gradient_harmonization`.
    """
    inner: Any = getattr(trainer, "_trainer", trainer)
    inner.iter = max(trainer.iter, trainer.start_iter)
    step = build_step(inner, ProbeConfig.of(HarmonizationConfig(**settings) if cfg is None else settings_of(cfg)))
    assert isinstance(step, HarmonizedStep)
    return step.probe(batches)


class GradientHarmonizationHook(HookBase):
    """Harmonizes the gradients of the trainer that it is registered with, from the start to the end of a training.

    ::

        trainer.register_hooks([GradientHarmonizationHook(cfg)])

    With a LazyConfig, ``gh = L(GradientHarmonizationHook)(weighting="gh++:adaptive")`` in the config file and
    ``instantiate(cfg.gh)`` in the list of hooks.

    At the first harmonized step the main process logs which losses are harmonized, over what. Every ``log_period``
    iterations the main process writes to the event storage what :meth:`Measurements.read()
    <gh_downstream.harmonization.Measurements.read>` returns, and ``gh/loss/TASK`` (raw, of the main process; not with
    ``measure="features"``, where the step is the trainer's own and only what the model measures is read). With a loss
    scaler the norms are those of the scaled losses. With weighting ``sum`` the step is the trainer's own, bit for bit,
    and every ``period``-th is measured, which takes backward passes of its own. Harmonization never begins before the
    burn-in of a model of this package (``DA.BURN_IN_ITERS``) is over, until when there is nothing to harmonize.
    Wherever it is registered, it moves itself before the hooks that save and write, so that what they see is of the
    step just taken.

    Register it before a checkpoint is loaded, so that its state is loaded too.

    Args:
        cfg: A config with the node ``GH``; or give ``settings``.
        **settings: The attributes of :class:`~gh_downstream.harmonization.HarmonizationConfig`, and ``log_period``, the
            iterations between two entries, 20 by default: a divisor of the writers' period keeps them on the other
            metrics' lines of metrics.json.

    Raises:
        TypeError: Neither or both of ``cfg`` and ``settings`` are given, or a name of the latter is unknown.
        ValueError: A setting is wrong. When it is registered: with a trainer that has loaded a checkpoint to resume.
    """

    def __init__(self, cfg: CfgNode | None = None, **settings: Any) -> None:
        if (cfg is None) != bool(settings):
            raise TypeError("give a config with the node GH, or settings such as weighting='gh++'; not both")
        log_period = settings.pop("log_period", LOG_PERIOD)
        self.settings = HarmonizationConfig(**settings) if cfg is None else settings_of(cfg)
        self.log_period: int = log_period if cfg is None else cfg.GH.LOG_PERIOD
        check_at_least("log_period" if cfg is None else "GH.LOG_PERIOD", self.log_period, 1)
        if self.settings.weighting == "none" and comm.is_main_process():
            logger.info("GH.WEIGHTING is none: the gradients are neither harmonized nor measured")
        self._step: HarmonizedStep | ForkedStep | None = None
        # A checkpoint may be loaded before the training, and with it the step, begins.
        self._state: Mapping[str, Any] = {}

    @property
    def trainer(self) -> Any:
        """The trainer that the hook is registered with."""
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: TrainerBase) -> None:
        if self.settings.weighting != "none" and max(trainer.iter, trainer.start_iter) > 0:
            raise ValueError(
                "the checkpoint is loaded already, and what it has of the harmonization is lost by now: install it, or "
                "register its hook, before resume_or_load"
            )
        self._trainer = trainer

    def before_train(self) -> None:
        """Replace the step of the trainer, or with ``measure="features"`` begin to read what the model measures.

        Nothing to do if that is done, or for weighting ``none``.
        """
        if self._step is not None or self.settings.weighting == "none":
            return
        # A DefaultTrainer has the one that takes the steps inside.
        step = build_step(getattr(self.trainer, "_trainer", self.trainer), self.settings)
        if self._state:
            step.load_state_dict(self._state)
        step.install()
        self._step = step
        if self.settings.at_features and comm.is_main_process():
            logger.info("GH: %s; shared: the features of the model", self.settings.weighting)
        move_before_readers(self)

    def after_step(self) -> None:
        """Write what was measured."""
        if self._step is None:
            return
        self._step.check_taken(self.trainer)
        if (self.trainer.iter + 1) % self.log_period == 0 and comm.is_main_process():
            losses = {f"gh/loss/{task}": float(loss) for task, loss in self._step.losses.items()}
            self.trainer.storage.put_scalars(**losses, **self._step.measurements.read(), smoothing_hint=False)

    def after_train(self) -> None:
        """Give the trainer its own step back; the hook keeps its state."""
        if self._step is not None:
            self._state = self._step.state_dict()
            self._step.remove()
            self._step = None

    def state_dict(self) -> Mapping[str, Any]:
        """What a checkpoint keeps; it loads with ``weights_only=True``."""
        return self._state if self._step is None else self._step.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._state = state
        if self._step is not None:
            self._step.load_state_dict(state)


def move_before_readers(hook: HookBase) -> None:
    """Move a registered hook before those that evaluate, save and write: what they see is of the step just taken."""
    readers = (hooks.EvalHook, hooks.PeriodicCheckpointer, hooks.BestCheckpointer, hooks.PeriodicWriter)
    others = [other for other in hook.trainer._hooks if other is not hook]
    place = next((k for k, other in enumerate(others) if isinstance(other, readers)), len(others))
    # A new list: the old one may be under iteration, in which every hook has its turn once.
    hook.trainer._hooks = [*others[:place], hook, *others[place:]]
