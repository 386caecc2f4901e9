"""The backward passes of the authors' published code, which cost more than ours: for measurements of what they cost."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gh_downstream.harmonization.checks import numbers_by_task
from gh_downstream.harmonization.harmonizer import Harmonizer
from gh_downstream.harmonization.passes import Scale, ordered_losses
from gh_downstream.harmonization.report import Report


class ThreePasses(Harmonizer):
    """Two backward passes for the gradients over the shared parameters, each copied into one vector, and a third one.

    The third is that of the weighted sum of the whole losses.
    """

    def backward(
        self, losses: Mapping[str, Tensor], trade_offs: Mapping[str, float] | None = None, scale: Scale = None
    ) -> Report:
        """As the base, in one process and without a period."""
        losses = ordered_losses(losses, self.loss_weights, scale)
        shared = [parameter for parameter in self.shared if parameter.requires_grad]
        gradients = []
        for loss in losses.values():
            found = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True, materialize_grads=True)
            gradients.append(torch.cat([gradient.flatten() for gradient in found]))
        gramian = torch.stack([a @ b for a in gradients for b in gradients]).reshape(2, 2)
        weights = self.weighting(gramian)
        factors = numbers_by_task("trade_offs", trade_offs, self.tasks)
        (weights @ torch.stack([losses[task] * factors[task] for task in self.tasks])).backward()
        return Report(self.tasks, gramian, weights)
