"""SIGTERM and Ctrl-C: a training ends after the step that it is in, with a checkpoint."""

import signal
import threading
import time
from types import FrameType, TracebackType

import torch
from torch import Tensor, distributed

_PATIENCE = 5.0
"""Seconds after which a second signal ends at once; before, it is the same one, sent by terminal and launcher alike."""


class Stopped(SystemExit):
    """A signal has ended a training, and its checkpoint is written; the exit code is 128 + the number of the signal."""


class StopSignals:
    """Notes SIGTERM and Ctrl-C within its ``with``, in the main thread; in others, and of ignored ones, nothing.

    ::

        with StopSignals() as stop:
            while not stop.agreed():
                train_step()

    Attributes:
        number: Number of the signal that came first; 0 for none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self._before: dict[int, signal.Handlers] = {}
        self._last_step: Tensor | None = None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)  # type: ignore[assignment]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self, device: torch.device | str = "cpu") -> int:
        """Return the number of the signal on which all processes stop now; 0 to go on. Call it at each step.

        Of several processes all return the same, what any of them had noted one step before: so long their common
        number, on the device, has time to arrive, and no step waits for it.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return self.number
        number, before = torch.tensor(self.number, device=device), self._last_step
        distributed.all_reduce(number, distributed.ReduceOp.MAX)
        self._last_step = number
        return 0 if before is None else int(before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > _PATIENCE:
            raise Stopped(128 + number)
