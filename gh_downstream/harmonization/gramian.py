"""Measure: the Gramian of several gradients, in float64, without a concatenated copy of any of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

_BLOCK = 1 << 16
_SMALL = 1 << 13
_FAINT = 1e-20
"""Squared norms below this may have lost products of float32 to underflow: a billion of them come to 1e-29 at most."""


def gramian(gradients: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Return the inner products of gradients that are given tensor by tensor.

    A float32 dot product of a vector of 25 million entries is wrong by 1e-3 and more on a CPU, enough to push the
    cosine of opposite gradients below -1. Here blocks of at most 65536 products are summed in float32 or wider, and all
    else in float64. Where the products themselves would leave the range of float32, they are made in float64 too.

    Args:
        gradients: ``m`` gradients, each a sequence over the same tensors in the same order; ``None`` is zero.
            The tensors of one position have one shape and may have any floating dtype; positions may be on several
            devices.

    Returns:
        Gramian of shape ``[m, m]``, float64, on the first gradient's device (of MPS, which has no float64, on the CPU).
        Not finite where a gradient is not.
    """
    first = next((t.device for gradient in gradients for t in gradient if t is not None), torch.device("cpu"))
    gradients = _small_joined(gradients)
    measured = _products(gradients, _blocks, home(first))
    squares = measured.diagonal()
    # On a CPU a look at the result costs nothing; elsewhere all is in float64 from the first.
    if measured.device.type == "cpu" and not (squares.isfinite() & (squares > _FAINT)).all():
        return _products(gradients, _wide_blocks, measured.device)
    return measured


def home(device: torch.device) -> torch.device:
    """Where what is measured on a device lives: there, but for MPS, which has no float64, on the CPU."""
    return torch.device("cpu") if device.type == "mps" else device


def _small_joined(gradients: Sequence[Sequence[Tensor | None]]) -> list[list[Tensor | None]]:
    """Join the small tensors on a CPU, where a product costs more for each tensor than for each entry."""
    joined: list[list[Tensor | None]] = [[] for _ in gradients]
    kinds = [[None if t is None or t.numel() > _SMALL or not t.is_cpu else t.dtype for t in row] for row in gradients]
    groups: dict[tuple[torch.dtype | None, ...], list[tuple[Tensor | None, ...]]] = {}
    for kind, tensors in zip(zip(*kinds, strict=True), zip(*gradients, strict=True), strict=True):
        groups.setdefault(kind, []).append(tensors)
    for kind, places in groups.items():
        for row, dtype, tensors in zip(joined, kind, zip(*places, strict=True), strict=True):
            row += [_flatten_dense_tensors(tensors)] if dtype else tensors if not any(kind) else [None]
    return joined


Row: TypeAlias = Sequence[Tensor | None]
"""A tensor, or a part of it, of each of the gradients."""


def _products(gradients: Sequence[Row], blocks: Callable[[Row], Iterable[Row]], device: torch.device) -> Tensor:
    """The Gramian, of the inner products of blocks of each tensor."""
    m = len(gradients)
    partial: dict[tuple[int, int], list[Tensor]] = {(i, j): [] for i in range(m) for j in range(i, m)}
    for tensors in zip(*gradients, strict=True):
        for block in blocks(tensors):
            for (i, j), found in partial.items():
                a, b = block[i], block[j]
                if a is not None and b is not None:
                    found.append(torch.dot(a, b))
    zero = torch.zeros((), dtype=torch.float64, device=device)
    sums = {pair: _sum(found, device) if found else zero for pair, found in partial.items()}
    return torch.stack([sums[min(i, j), max(i, j)] for i in range(m) for j in range(m)]).reshape(m, m)


def _sum(scalars: Sequence[Tensor], device: torch.device) -> Tensor:
    parts: dict[torch.device, list[Tensor]] = {}
    for scalar in scalars:
        parts.setdefault(scalar.device, []).append(scalar)
    return reduce(torch.add, [torch.stack(part).sum(dtype=torch.float64).to(device) for part in parts.values()])


def _blocks(tensors: Row) -> Iterator[Row]:
    """Blocks to multiply: of float32 on a CPU, where the products stay in its range; otherwise of float64."""
    if any(t is not None and t.device.type not in ("cpu", "mps") for t in tensors):
        yield from _wide_blocks(tensors)
        return
    # Seven times faster than in float64, as it needs no memory; exact to 1e-7 a block.
    for block in _split(tensors, _BLOCK):
        yield [t if t is None else t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in block]


def _wide_blocks(tensors: Row) -> Iterator[Row]:
    """Blocks in float64, for any range: together they need the memory of two tensors of 33 million entries."""
    for block in _split(tensors, 1024 * _BLOCK // len(tensors)):
        yield [t if t is None else t.double() for t in block]


def _split(tensors: Row, size: int) -> Iterator[Row]:
    """Parts of a position's tensors as real vectors; those of MPS, which has no float64, on the CPU."""
    real = [t if t is None or not t.is_complex() else torch.view_as_real(t) for t in tensors]
    flat = [t if t is None else t.flatten().to(home(t.device)) for t in real]
    longest = max((len(t) for t in flat if t is not None), default=0)
    for start in range(0, longest, size):
        yield [t if t is None or longest <= size else t[start : start + size] for t in flat]
