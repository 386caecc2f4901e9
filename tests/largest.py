"""How large the tensors get that some code makes."""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Largest(TorchDispatchMode):
    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(outputs) if torch.is_tensor(x)]
        self.entries = max(self.entries, *sizes, 0)
        return outputs


@contextmanager
def largest_tensor():
    """Give a function that returns the entries of the largest tensor that was made, or looked at, within the with."""
    with _Largest() as mode:
        yield lambda: mode.entries
