"""Several losses in the place of the one that a trainer knows; what the mixins of transformers and Lightning share."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from gh_downstream.harmonization import Harmonizer, Sum
from gh_downstream.harmonization.distributed import all_reduce_mean, world_size


class JointLoss:
    """Makes one scalar of the losses of a step; its ``backward`` leaves the harmonized gradient.

    ::

        joint_loss = JointLoss(Harmonizer("gh++", shared=model.trunk))
        ...
        joint_loss({"task": task_loss, "alignment": alignment_loss}).backward()

    What a trainer multiplies the scalar by (one over the accumulation, the scale of a loss scaler) reaches the gradient
    and leaves the weights as they are. In a single process the weighting :class:`~gh_downstream.Sum` takes the plain
    step, bit for bit, and measures beside it, for two backward passes more at each measurement: its ``period`` makes
    that rare.

    Args:
        harmonizer: The harmonizer, whose state is all that has to survive a restart.
    """

    def __init__(self, harmonizer: Harmonizer) -> None:
        if any(weight != 1 for weight in harmonizer.loss_weights.values()):
            raise ValueError(
                "the harmonizer has loss_weights: multiply the losses instead, so that the loss in the log is the one "
                "that is trained on"
            )
        self.harmonizer = harmonizer
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def __call__(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the plain sum, of shape ``[]``, of a scalar loss for each task of the harmonizer.

        Raises:
            TypeError: ``losses`` is not a mapping.
            ValueError: There is no loss in it.
        """
        total = plain_sum(losses)
        for task, loss in losses.items():
            self._sums[task] = self._sums.get(task, 0) + loss.detach()
        self._count += 1
        joint = total.detach().requires_grad_()
        # What arrives here is what the trainer multiplied the loss by.
        joint.register_hook(partial(self._backward, losses, total))
        return joint

    def read(self) -> dict[str, float]:
        """Read to the host what to log, and begin anew; in several processes all of them have to call it.

        Returns:
            After a step ``gh/loss/TASK``, the mean of each loss over the steps since the last call and the processes,
            and what :meth:`Measurements.read() <gh_downstream.harmonization.Measurements.read>` returns, with the norms
            of the losses as accumulation and loss scaler scale them.
        """
        if not self._count:
            return {}
        means = torch.stack([value.float().reshape(()) for value in self._sums.values()]) / self._count
        all_reduce_mean([means], self.harmonizer.process_group)
        metrics = {f"gh/loss/{task}": value for task, value in zip(self._sums, means.tolist(), strict=True)}
        self._sums, self._count = {}, 0
        return metrics | self.harmonizer.measurements.read()

    def _backward(self, losses: Mapping[str, Tensor], total: Tensor, scale: Tensor) -> None:
        with torch.enable_grad():  # A hook runs without.
            if isinstance(self.harmonizer.weighting, Sum) and world_size(self.harmonizer.process_group) == 1:
                self.harmonizer.weigh(losses, scale.mul)
                total.backward(scale)
            else:
                self.harmonizer.backward(losses, scale=scale.mul)


def plain_sum(losses: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of losses by task; raise a TypeError where they are something else, a ValueError for none."""
    if not isinstance(losses, Mapping):
        raise TypeError(f"a step takes the losses by task, got {type(losses).__name__}")
    total = sum(losses.values())
    if not isinstance(total, Tensor):
        raise ValueError(f"there is no loss to train on: no tensor in {dict(losses)}")
    return total


def check_mixin(kind: type, mixin: type, method: str) -> None:
    """Raise a TypeError where a class has a method from another one than the mixin, which comes after that one."""
    if getattr(kind, method) is not getattr(mixin, method):
        bases = [mixin.__name__, *(base.__name__ for base in kind.__bases__ if base is not mixin)]
        raise TypeError(
            f"{method} of {kind.__name__} is not that of the {mixin.__name__}, so nothing would be harmonized: the "
            f"mixin comes first, class {kind.__name__}({', '.join(bases)}), and compute_losses returns the losses"
        )


def sharded(strategy: str) -> ValueError:
    """Return the error of a training whose gradients are sharded over processes."""
    return ValueError(
        f"the gradients of single losses cannot be measured under {strategy}, which shards or replaces them: train "
        "with DistributedDataParallel, or harmonize at the features with gh_downstream.fork inside the model"
    )
