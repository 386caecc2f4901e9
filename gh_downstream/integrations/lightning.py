"""Harmonized gradients in a ``LightningModule``, of ``lightning`` and of ``pytorch_lightning`` 2."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gh_downstream.harmonization import Harmonizer
from gh_downstream.integrations.joint_loss import JointLoss, check_mixin, sharded

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as _Base
else:
    _Base = object

logger = logging.getLogger(__name__)

STATE_KEY = "harmonizer"
"""Key of the harmonizer's state in a checkpoint of Lightning."""


class GradientHarmonizationMixin(_Base):
    """Gives a ``LightningModule`` two or more losses whose gradients are harmonized at the shared parameters, exactly.

    ::

        class Adapted(GradientHarmonizationMixin, L.LightningModule):
            def compute_losses(self, batch, batch_idx):
                (images, labels), target = batch["source"], batch["target"]
                source, target = self.backbone(images), self.backbone(target)
                return {"task": cross_entropy(self.head(source), labels), "alignment": 0.1 * mmd(source, target)}

            def create_harmonizer(self):
                return Harmonizer("gh++", shared=self.backbone, model=self)

            def configure_optimizers(self): ...

    The step stays Lightning's automatic optimization, with what the ``Trainer`` is given: accumulation (each
    micro-batch is harmonized by itself), clipping, precision, schedules, checkpoints. Only the ``backward`` of the loss
    is another one, that of a :class:`~gh_downstream.integrations.joint_loss.JointLoss`. All parameters are one
    optimizer's, as automatic optimization wants it; a discriminator with another learning rate is a parameter group.

    Every ``log_every_n_steps`` steps the log gets what :meth:`JointLoss.read()
    <gh_downstream.integrations.joint_loss.JointLoss.read>` returns: ``gh/loss/TASK``, ``gh/angle``, ``gh/weight/TASK``
    and more. A checkpoint holds what the harmonizer has to remember.

    In several processes (the strategies ``ddp...``) the harmonizer averages the gradients itself: the module is taken
    out of ``DistributedDataParallel`` once that has made the processes equal. So no buffers are broadcast, and
    ``find_unused_parameters``, ``static_graph`` and communication hooks have no effect. A loss of the whole batch
    (contrastive, a discrepancy) has to gather its features with gradient. With ``ModelParallelStrategy`` modules may be
    sharded by ``torch.distributed.fsdp.fully_shard``; ``FSDPStrategy`` and DeepSpeed are refused.

    A hook that you override calls ``super()``'s: ``on_fit_start``, ``on_before_optimizer_step``,
    ``on_save_checkpoint``, ``on_load_checkpoint``.

    Attributes:
        joint_loss: The losses of the training, with their harmonizer; None before the first.

    Raises:
        TypeError: The mixin comes after the LightningModule in the list of base classes, or the class has a
            ``training_step`` of its own.
        ValueError: When fitting starts: the strategy shards the gradients, or the optimization is manual.
    """

    joint_loss: JointLoss | None = None
    _resumed: dict[str, Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_mixin(cls, GradientHarmonizationMixin, "training_step")

    def compute_losses(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return a scalar loss for each task of the harmonizer, fixed weights included, of a batch and its number.

        Yours to write, in the place of ``training_step``.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define compute_losses(self, batch, batch_idx)")

    def create_harmonizer(self) -> Harmonizer:
        """Return the harmonizer of a training; yours to write. Several processes need its ``model=self``."""
        raise NotImplementedError(f"{type(self).__name__} has to define create_harmonizer(self)")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the plain sum of the losses; its ``backward`` leaves the harmonized gradient."""
        if self.joint_loss is None:
            raise RuntimeError(f"on_fit_start of {type(self).__name__} has to call super().on_fit_start()")
        return self.joint_loss(self.compute_losses(batch, batch_idx))

    def on_fit_start(self) -> None:
        """Make the harmonizer, as it was in the checkpoint that the training goes on from."""
        super().on_fit_start()
        if not self.automatic_optimization:
            raise ValueError(
                f"{type(self).__name__}: the mixin harmonizes Lightning's automatic optimization; give its one "
                "optimizer a group of parameters for each learning rate, or write a manual one with Harmonizer.backward"
            )
        strategy = self.trainer.strategy
        if isinstance(strategy.model, DistributedDataParallel):
            strategy.model = self
        elif strategy.model is not self:
            raise sharded(type(strategy).__name__)
        self.joint_loss = JointLoss(self.create_harmonizer())
        if self.trainer.ckpt_path is None:
            return
        if self._resumed is None:
            logger.warning("%s has no state of a harmonizer: the harmonization begins anew", self.trainer.ckpt_path)
        else:
            self.joint_loss.harmonizer.load_state_dict(self._resumed)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Log what was measured since the last entry."""
        super().on_before_optimizer_step(optimizer)
        trainer: Any = self.trainer  # Its type does not name log_every_n_steps.
        every = trainer.log_every_n_steps
        if self.joint_loss is not None and every and (trainer.global_step + 1) % every == 0:
            self.log_dict(self.joint_loss.read())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the harmonizer."""
        super().on_save_checkpoint(checkpoint)
        if self.joint_loss is not None:
            checkpoint[STATE_KEY] = self.joint_loss.harmonizer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the state of the harmonizer, which is made later."""
        super().on_load_checkpoint(checkpoint)
        self._resumed = checkpoint.get(STATE_KEY)
