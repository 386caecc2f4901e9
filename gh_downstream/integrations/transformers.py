"""Harmonized gradients in the ``Trainer`` of transformers, from 4.40 on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gh_downstream.files import atomic_file
from gh_downstream.harmonization import Harmonizer
from gh_downstream.integrations.joint_loss import JointLoss, check_mixin, plain_sum, sharded

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object

logger = logging.getLogger(__name__)

STATE_FILE = "harmonizer.pt"
"""Name of the harmonizer's file in a checkpoint of the Trainer."""


class GradientHarmonizationMixin(_Base):
    """Gives a ``Trainer``, or any subclass of it, two or more losses whose gradients are harmonized, exactly.

    ::

        class AdaptedTrainer(GradientHarmonizationMixin, Trainer):
            def compute_losses(self, model, inputs):
                source = model(**inputs["source"], output_hidden_states=True)
                target = model(**inputs["target"], output_hidden_states=True)
                features = [outputs.hidden_states[-1][:, 0] for outputs in (source, target)]
                return {"task": source.loss, "alignment": 0.1 * mmd(*features)}

            def create_harmonizer(self, model):
                return Harmonizer("gh++", shared=model.base_model, model=model)

    The step stays the Trainer's: its accumulation (each micro-batch is harmonized by itself), loss scaler, clipping,
    optimizer, schedule and checkpoints, in which ``harmonizer.pt`` holds what a :class:`~gh_downstream.Harmonizer` has
    to remember. Only the ``backward`` of the loss is another one, that of a
    :class:`~gh_downstream.integrations.joint_loss.JointLoss`.

    The log has beside ``loss``, the plain sum, what :meth:`JointLoss.read()
    <gh_downstream.integrations.joint_loss.JointLoss.read>` returns: ``gh/loss/TASK``, ``gh/angle``, ``gh/weight/TASK``
    and more. ``evaluate`` gives the plain sum as ``eval_loss``; ``predict`` and ``compute_metrics`` are the Trainer's,
    and so is ``eval_loss`` beside these, on batches that ``forward`` takes.

    In several processes the harmonizer averages the gradients itself and ``compute_losses`` gets the module inside
    ``DistributedDataParallel``, which then broadcasts no buffers. A discriminator has to be a submodule of the model,
    as for the Trainer's optimizer. FSDP, DeepSpeed and ``DataParallel`` are refused.

    .. warning:: A loss of the whole batch (contrastive, a discrepancy) has to gather its features with gradient, or
        its balance with the other loss changes with the number of processes. The loss inside transformers' CLIP and
        SigLIP does not: compute it from gathered features.

    The Trainer drops what the signature of the model's ``forward`` does not name from each batch: batches of other
    structure need ``TrainingArguments(remove_unused_columns=False)``.

    Attributes:
        joint_loss: The losses of the model in training, with their harmonizer; None before the first step.

    Raises:
        TypeError: The mixin comes after the Trainer in the list of base classes, or the class has a ``compute_loss`` of
            its own.
        ValueError: The training is sharded, uses ``DataParallel``, or has a ``compute_loss_func``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_mixin(cls, GradientHarmonizationMixin, "compute_loss")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        kind = self.accelerator.distributed_type
        if kind.value in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            raise sharded(kind.value)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"torch.nn.DataParallel over {self.args.n_gpu} GPUs is not supported: start a process for each with "
                f"torchrun --nproc_per_node {self.args.n_gpu}, or set CUDA_VISIBLE_DEVICES to one"
            )
        if getattr(self, "compute_loss_func", None) is not None:
            raise ValueError("compute_loss_func is one loss: return the losses by name from compute_losses instead")
        # Each loss is a mean over its micro-batch, which the Trainer has to divide by their number.
        self.model_accepts_loss_kwargs = False
        self.joint_loss: JointLoss | None = None
        self._harmonized: nn.Module | None = None
        self._loaded: Any = None

    def compute_losses(self, model: nn.Module, inputs: Any) -> dict[str, Tensor]:
        """Return a scalar loss for each task of the harmonizer, fixed weights included; yours to write.

        Called under the autocast of the Trainer's ``bf16`` or ``fp16``, in evaluation without gradients.

        Args:
            model: The model, not wrapped.
            inputs: What the data collator made, on the device.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define compute_losses(self, model, inputs)")

    def create_harmonizer(self, model: nn.Module) -> Harmonizer:
        """Return the harmonizer of a model, which is not wrapped; yours to write. Several processes need ``model=``."""
        raise NotImplementedError(f"{type(self).__name__} has to define create_harmonizer(self, model)")

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the plain sum of the losses, and with ``return_outputs`` the losses by task too.

        In training its ``backward`` leaves the harmonized gradient. Without gradients ``return_outputs`` asks for the
        outputs of the model, which come with the Trainer's own loss.

        Raises:
            TypeError: ``compute_losses`` returned something else than losses by task.
        """
        if return_outputs and not torch.is_grad_enabled():
            return super().compute_loss(model, inputs, return_outputs=True)
        module = self.accelerator.unwrap_model(model)
        with self.accelerator.autocast():
            losses = self.compute_losses(module, inputs)
        loss = self._joint_loss_of(module)(losses) if torch.is_grad_enabled() else plain_sum(losses)
        return (loss, losses) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Without metrics to compute return the plain sum of the losses; what ``forward`` takes is another batch."""
        if not prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log what was measured with each entry of the training."""
        if "loss" in logs and self.joint_loss is not None:
            logs = logs | self.joint_loss.read()
        super().log(logs, *args, **kwargs)

    def _joint_loss_of(self, module: nn.Module) -> JointLoss:
        """The joint loss of a model; ``model_init`` and a search of hyperparameters make more than one of these."""
        if self.joint_loss is None or self._harmonized is not module:
            self.joint_loss, self._harmonized = JointLoss(self.create_harmonizer(module)), module
        return self.joint_loss

    # transformers 5 writes the tensors of some models, such as RT-DETR's, under names of the hub, and its Trainer looks
    # for the model's own names when it reads them again (transformers#43701, #48805).

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        self._loaded = load_result

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *(() if model is None else (model,)))
        self._load_renamed(resume_from_checkpoint, model or self.model)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_renamed(str(self.state.best_model_checkpoint), self.model)

    def _load_renamed(self, checkpoint: str, model: Any) -> None:
        """Read what a checkpoint holds under other names than the model's, as ``from_pretrained`` does."""
        result, self._loaded = self._loaded, None
        if result is None:  # adapters
            return
        module: Any = self.accelerator.unwrap_model(model)
        if result.missing_keys and result.unexpected_keys and hasattr(module, "from_pretrained"):
            there, info = type(module).from_pretrained(checkpoint, output_loading_info=True)
            found = there.state_dict()
            names = [name for name in result.missing_keys if name in found and name not in info["missing_keys"]]
            module.load_state_dict({name: found[name] for name in names}, strict=False)
            unknown = [name for name in result.unexpected_keys if name in info["unexpected_keys"]]
            result = type(result)([name for name in result.missing_keys if name not in names], unknown)
            logger.info("%s: %d tensors of other names read by from_pretrained", checkpoint, len(names))
        super()._issue_warnings_after_load(result)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self.joint_loss is not None:
            with atomic_file(Path(output_dir) / STATE_FILE) as file:
                torch.save(self.joint_loss.harmonizer.state_dict(), file)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE_FILE
        if not path.exists():
            logger.warning("%s has no %s: the harmonization begins anew", checkpoint, STATE_FILE)
            return
        harmonizer = self._joint_loss_of(self.accelerator.unwrap_model(self.model)).harmonizer
        harmonizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
