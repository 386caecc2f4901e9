"""Lists that worker processes read without a copy of their own."""

import pickle
from collections.abc import Iterable
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


class Packed(Generic[T]):
    """A list in one piece of memory, whose items are made when they are asked for.

    A process that was forked shares memory with its parent until one of them writes, and to read a Python object is to
    write its reference count: with a list, every worker would end with a copy of all items that it has seen.

    Args:
        items: What is in the list, picklable.
    """

    def __init__(self, items: Iterable[T]) -> None:
        packed = [pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in items]
        self._bytes, self._ends = b"".join(packed), np.cumsum([len(item) for item in packed], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> T:
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._bytes[start : self._ends[index]])
