"""What every test of retrieval begins with."""

import pytest
import torch
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def _one_process():
    """One thread, and none of the processes that accelerate keeps of an earlier use."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)
