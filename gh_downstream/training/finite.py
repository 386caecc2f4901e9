"""Stop on numbers that are not finite, without waiting for the GPU at every step."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

_NAMED = 5  # files of a batch
_ELSEWHERE = "a number is not finite in another process, whose message names it"


class FiniteCheck:
    """Remembers losses and gradient norms until it is worth the wait to look at them.

    On CPU it looks at once, so that nothing has changed yet; on a GPU before anything is logged, evaluated or saved.

    Args:
        accelerator: That of the training.
        output: Its folder, for what errors advise.
    """

    def __init__(self, accelerator: Accelerator, output: str) -> None:
        self._accelerator = accelerator
        self._previous = Path(output, "previous.pt")
        self._pending: list[tuple[int, list[str], Tensor, Sequence[str]]] = []

    def watch(self, step: int, values: Mapping[str, Tensor], files: Sequence[str]) -> None:
        """Remember scalars of a step, from 1, whose batch was read from ``files``; on CPU :meth:`check` them too."""
        stacked = torch.stack([value.detach().float() for value in values.values()])
        self._pending.append((step, list(values), stacked, files))
        if self._accelerator.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Look at what is remembered; in every process, so that all stop before the main one saves anything.

        Raises:
            ValueError: A value is not finite; the first one is named, with its step and files.
        """
        if not self._pending:
            return
        bad = (~torch.cat([values for _, _, values, _ in self._pending]).isfinite()).sum()
        if not self._accelerator.reduce(bad).item():
            self._pending.clear()
            return
        for step, names, values, files in self._pending:
            for name, value in zip(names, values.tolist(), strict=True):
                if not math.isfinite(value):
                    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
                    read = f" (files {', '.join(map(str, files[:_NAMED]))}{more})" if files else ""
                    raise ValueError(f"{name} is {value} at step {step}{read}; {self._cure}")
        raise ValueError(_ELSEWHERE)

    def check_weights(self, step: int, models: Sequence[nn.Module]) -> None:
        """Look at the parameters and running statistics of models after a step; in every process, as :meth:`check`.

        Raises:
            ValueError: A value is not finite; the first tensor that has one is named.
        """
        named = [
            (name, tensor)
            for model in models
            for name, tensor in chain(model.named_parameters(), model.named_buffers())
            if isinstance(tensor, nn.Parameter) or name.endswith(("running_mean", "running_var"))
        ]
        bad = torch.stack([~tensor.detach().isfinite().all() for _, tensor in named])
        if self._accelerator.reduce(bad.sum()).item():
            names = [name for (name, _), is_bad in zip(named, bad.tolist(), strict=True) if is_bad]
            raise ValueError(f"{names[0]} is not finite after step {step}; {self._cure}" if names else _ELSEWHERE)

    @property
    def _cure(self) -> str:
        cure = (
            "nothing of it was saved. If the data are right, lower optimizer.lr or set optimizer.clip_norm, in another "
            "output"
        )
        if not self._previous.exists():
            return cure
        return f"{cure}; training.init_from={self._previous} goes on there from the last checkpoint but one"
