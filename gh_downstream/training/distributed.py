"""The processes that a launcher started, and the accelerator of each."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

try:
    from accelerate import Accelerator, PartialState
    from accelerate.utils import broadcast_object_list, parse_flag_from_env
except ImportError as error:
    raise ImportError("training needs accelerate: pip install 'gh_downstream[training]'") from error

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


def evaluation_precision(mixed_precision: str) -> torch.autocast:
    """Return a context to evaluate a model in, in the precision of its training (``no``, ``bf16``, ``fp16``)."""
    dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]
    return torch.autocast(process_state().device.type, dtype, enabled=dtype is not None)


def from_main(compute: Callable[[], T]) -> T:
    """Return in every process what the main one computes, the others waiting, or raise the error that it ran into."""
    state = process_state()
    if state.num_processes == 1:
        return compute()
    told: list[Any] = [None]
    if state.is_main_process:
        try:
            told = [compute()]
        except Exception as error:
            told = [error]
    (found,) = broadcast_object_list(told)
    if isinstance(found, Exception):
        raise found
    return found
