"""The processes that a launcher started, and the accelerator of each."""

import os
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, TypeVar

import torch

try:
    from accelerate import Accelerator, PartialState
    from accelerate.utils import gather_object, parse_flag_from_env
except ImportError as error:
    raise ImportError("training needs accelerate: pip install 'gh_downstream[training]'") from error

S = TypeVar("S")
T = TypeVar("T")


def process_state() -> PartialState:
    """Return which process this is, of how many, and its device.

    Raises:
        ValueError: accelerate would let each of several processes run as if it were alone.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.num_processes != (started := int(os.environ.get("WORLD_SIZE", 1))):
        raise ValueError(
            f"accelerate sees {state.num_processes} process, the launcher started {started}: to use CPUs set "
            "ACCELERATE_USE_CPU=true"
        )
    return state


def build_accelerator(mixed_precision: str) -> Accelerator:
    """Return an accelerator of a precision (``no``, ``bf16``, ``fp16``), where it would not quietly do something else.

    Raises:
        ValueError: As :func:`process_state`, or fp16 without a GPU.
    """
    process_state()
    accelerator = Accelerator(mixed_precision=mixed_precision)
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("training.mixed_precision=fp16 needs a GPU; use bf16 or no")
    return accelerator


def wait_for_everyone(accelerator: Accelerator) -> None:
    """Wait for the other processes; accelerate's own names a GPU, also of processes on CPUs beside fewer GPUs."""
    if accelerator.num_processes > 1:
        accelerator.reduce(torch.zeros((), device=accelerator.device)).item()


def evaluation_precision(mixed_precision: str) -> torch.autocast:
    """Return a context to evaluate a model in, in the precision of its training (``no``, ``bf16``, ``fp16``)."""
    dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]
    return torch.autocast(process_state().device.type, dtype, enabled=dtype is not None)


def shared_map(function: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """Return a function of each item, as ``map`` does; each process computes some of them, and all get the results.

    All processes call this with the same items. The first error is raised in all of them.
    """
    state = process_state()
    if state.num_processes == 1:
        yield from map(function, items)
        return
    found: list[tuple[int, Any]] = []
    for index in range(state.process_index, len(items), state.num_processes):
        try:
            found.append((index, function(items[index])))
        except Exception as error:
            found.append((index, error))
    for _, result in sorted(gather_object(found), key=itemgetter(0)):
        if isinstance(result, Exception):
            raise result
        yield result
