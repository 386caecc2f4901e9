"""Harmonized gradients in the ``Trainer`` of transformers, from 4.40 on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gh_downstream.harmonization import Harmonizer, Measurements, Sum
from gh_downstream.harmonization.distributed import world_size

try:
    from accelerate.utils import DistributedType
    from transformers import Trainer
except ImportError as error:
    raise ImportError(
        f"GradientHarmonizationMixin needs transformers and accelerate ({error}): "
        "pip install 'gh_downstream[retrieval]'"
    ) from error

logger = logging.getLogger(__name__)

STATE_FILE = "harmonizer.pt"
"""Name of the harmonizer's file in a checkpoint of the Trainer."""

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class GradientHarmonizationMixin(_Base):
    """Gives a ``Trainer``, or any subclass of it, two or more losses whose gradients are harmonized, exactly.

    ::

        class AlignedTrainer(GradientHarmonizationMixin, Trainer):
            def compute_losses(self, model, inputs):
                source = model(**inputs["source"], return_loss=True)
                target = normalize(model.get_image_features(inputs["target"]).pooler_output)
                return {"task": source.loss, "alignment": 0.1 * mmd(source.image_embeds, target)}

            def create_harmonizer(self, model):
                return Harmonizer(GHPlusPlus(), shared=["vision_model", "visual_projection"], model=model)

    The step stays the Trainer's: its accumulation (each micro-batch is harmonized by itself), loss scaler, clipping,
    optimizer, schedule and checkpoints, in which ``harmonizer.pt`` holds what a :class:`~gh_downstream.Harmonizer` has
    to remember. Only the ``backward`` of the loss is another one. The weighting :class:`~gh_downstream.Sum` takes the
    plain step, bit for bit in a single process, and measures beside it, for two backward passes more at each
    measurement: its ``period`` makes that rare.

    The log has beside ``loss``, the plain sum, ``loss_TASK`` for each task, the mean since the last entry over steps
    and processes; ``gh_cosine``, ``gh_angle`` (degrees), ``gh_gain``, ``gh_weight_TASK`` and ``gh_norm_TASK`` (of the
    losses as accumulation and loss scaler scale them) of the last measurement; and ``gh_conflict_rate`` since the last
    entry. ``evaluate`` gives the plain sum as ``eval_loss``; ``predict`` and metrics are the Trainer's, on batches that
    ``forward`` takes.

    In several processes the harmonizer averages the gradients itself and ``compute_losses`` gets the module inside
    ``DistributedDataParallel``, which then broadcasts no buffers. A discriminator has to be a submodule of the model,
    as for the Trainer's optimizer. FSDP, DeepSpeed and ``DataParallel`` are refused.

    .. warning:: The contrastive loss inside transformers' CLIP and SigLIP is one of each device's own batch: its
        negatives, and with them the balance with the other loss, change with the number of processes. Compute it from
        features that :func:`~gh_downstream.retrieval.objectives.gather_with_gradient` has joined, and the discrepancy
        of the alignment too; then two processes take the step of one on the joined batch.

    The Trainer drops what the signature of the model's ``forward`` does not name from each batch: batches of other
    structure need ``TrainingArguments(remove_unused_columns=False)``.

    Attributes:
        measurements: What was measured since the last entry in the log.

    Raises:
        TypeError: The mixin comes after the Trainer in the list of base classes.
        ValueError: The training is sharded, uses ``DataParallel``, or has a ``compute_loss_func``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(GradientHarmonizationMixin):
            raise TypeError(
                f"{cls.__name__}: GradientHarmonizationMixin has to come before the Trainer, or nothing is harmonized: "
                f"class {cls.__name__}(GradientHarmonizationMixin, Trainer)"
            )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        kind = self.accelerator.distributed_type
        if kind in _SHARDED:
            raise ValueError(
                f"the gradients of single losses cannot be measured under {kind.value}, which shards them: train with "
                "DistributedDataParallel (torchrun, without fsdp and deepspeed), or harmonize at the features with "
                "gh_downstream.fork inside the model"
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"torch.nn.DataParallel over {self.args.n_gpu} GPUs is not supported: start a process for each with "
                f"torchrun --nproc_per_node {self.args.n_gpu}, or set CUDA_VISIBLE_DEVICES to one"
            )
        if getattr(self, "compute_loss_func", None) is not None:
            raise ValueError("compute_loss_func is one loss: return the losses by name from compute_losses instead")
        # Each loss is a mean over its micro-batch, which the Trainer has to divide by their number.
        self.model_accepts_loss_kwargs = False
        self.measurements = Measurements()
        self._harmonizer: Harmonizer | None = None
        self._harmonized: nn.Module | None = None
        self._losses: dict[str, Tensor] = {}
        self._count = 0

    def compute_losses(self, model: nn.Module, inputs: Any) -> dict[str, Tensor]:
        """Return the losses of a batch by task; yours to write.

        Args:
            model: The model, not wrapped.
            inputs: What the data collator made, on the device.

        Returns:
            A scalar for each task of the harmonizer, such as ``{"task": ..., "alignment": ...}``. A fixed weight of a
            loss belongs here. Called under the autocast of the Trainer's ``bf16`` or ``fp16``, in evaluation without
            gradients.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define compute_losses(self, model, inputs)")

    def create_harmonizer(self, model: nn.Module) -> Harmonizer:
        """Return the harmonizer of a model; yours to write.

        Args:
            model: The model, not wrapped. Pass it on as ``model``, which several processes need.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define create_harmonizer(self, model)")

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the plain sum of the losses; in training its ``backward`` leaves the harmonized gradient.

        Args:
            model: The model as the Trainer wraps it.
            inputs: The batch.
            return_outputs: Return the losses by task too.
            num_items_in_batch: Not used.

        Raises:
            TypeError: ``compute_losses`` returned something else than losses by task.
        """
        module = self.accelerator.unwrap_model(model)
        with self.accelerator.autocast():
            losses = self.compute_losses(module, inputs)
        if not isinstance(losses, Mapping):
            raise TypeError(f"compute_losses returns the losses by task, got {type(losses).__name__}")
        loss = sum(losses.values())
        assert isinstance(loss, Tensor)
        if torch.is_grad_enabled():
            for task, value in losses.items():
                self._losses[task] = value.detach() + self._losses.get(task, 0)
            self._count += 1
            backward = partial(self._backward, self._harmonizer_of(module), losses, loss)
            loss = loss.detach().requires_grad_()
            # What arrives here is what the Trainer multiplied the loss by: one over the accumulation, the scaler's.
            loss.register_hook(backward)
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
        if "loss" in logs and self._count:
            means = torch.stack([value.float().reshape(()) for value in self._losses.values()]) / self._count
            values = self.accelerator.reduce(means, "mean").tolist()
            logs = logs | {f"loss_{task}": value for task, value in zip(self._losses, values, strict=True)}
            logs |= {f"gh_{name}": value for name, value in self.measurements.read().items()}
            self._losses, self._count = {}, 0
        super().log(logs, *args, **kwargs)

    def _backward(self, harmonizer: Harmonizer, losses: Mapping[str, Tensor], total: Tensor, scale: Tensor) -> None:
        with torch.enable_grad():  # A hook runs without.
            scaled = {task: loss * scale for task, loss in losses.items()}
            if isinstance(harmonizer.weighting, Sum) and world_size() == 1:
                report = harmonizer.weigh(scaled)
                total.backward(scale)
            else:
                report = harmonizer.backward(scaled)
        if report is not self.measurements.report:
            self.measurements.add(report)

    def _harmonizer_of(self, module: nn.Module) -> Harmonizer:
        """The harmonizer of a model; ``model_init`` and a search of hyperparameters make more than one of these."""
        if self._harmonizer is None or self._harmonized is not module:
            harmonizer = self.create_harmonizer(module)
            if any(weight != 1 for weight in harmonizer.loss_weights.values()):
                raise ValueError(
                    "create_harmonizer set loss_weights: multiply the losses in compute_losses instead, so that the "
                    "loss in the log is the one that is trained on"
                )
            self._harmonizer, self._harmonized = harmonizer, module
        return self._harmonizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self._harmonizer is not None:
            torch.save(self._harmonizer.state_dict(), Path(output_dir) / STATE_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE_FILE
        if not path.exists():
            logger.warning("%s has no %s: the harmonization begins anew", checkpoint, STATE_FILE)
            return
        harmonizer = self._harmonizer_of(self.accelerator.unwrap_model(self.model))
        harmonizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.measurements.report = harmonizer.report
