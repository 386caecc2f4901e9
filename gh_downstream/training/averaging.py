"""An exponential moving average of the weights, which is evaluated and exported in their place."""

import copy
from itertools import chain

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    r"""Exponential moving average of the weights of a model, which starts at the weights that the model has.

    .. math:: \bar w_t = d_t \bar w_{t-1} + (1 - d_t) w_t, \qquad d_t = \min\left(d, \frac{1 + t}{10 + t}\right)

    after step :math:`t = 1, 2, \dots`. The decay rises to :math:`d` as in TensorFlow's ``ExponentialMovingAverage``, so
    that the average forgets where training started, which otherwise keeps a share of :math:`d^t`: a third after 1000
    steps of a decay of 0.999.

    The parameters that are trained are averaged, and the running statistics of batch normalization with them, as those
    of the last weights do not fit averaged ones. All else is the model's own tensor and not a copy: frozen parameters,
    which would double the memory, and other buffers, such as masks and counters, which have no average (``-inf`` gives
    NaN, integers are rounded). This is why it is no ``torch.optim.swa_utils.AveragedModel``, which copies everything
    and averages all buffers or none.

    Args:
        model: The model, on its device.
        decay: Decay :math:`d`, between 0 and 1.

    Attributes:
        module: The averaged model, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._current = _averaged_tensors(model)
        averaged = {id(tensor) for tensor in self._current}
        own = {id(x): x for x in chain(model.parameters(), model.buffers()) if id(x) not in averaged}
        self.module = copy.deepcopy(model, own).eval()
        self._average = _averaged_tensors(self.module)
        self.module.requires_grad_(False)

    def update(self, step: int) -> None:
        """Take the weights of a step, counted from 1, into the average; the device is not waited for."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self._average, self._current, step)


def _averaged_tensors(model: nn.Module) -> list[Tensor]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    statistics = [
        x
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for x in (module.running_mean, module.running_var)
        if x is not None
    ]
    return [*parameters, *statistics]
