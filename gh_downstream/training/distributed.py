"""The processes that a launcher started."""

from __future__ import annotations

import os

try:
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env
except ImportError as error:
    raise ImportError("training needs accelerate: pip install gh_downstream[detection]") from error


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
