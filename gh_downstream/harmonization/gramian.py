"""Measure: the Gramian of several gradients, in float64, without a concatenated copy of any of them."""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce

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
    measured = _products(gradients, _dots, home(first))
    squares = measured.diagonal()
    # On a CPU a look at the result costs nothing; elsewhere all is in float64 from the first.
    if measured.device.type == "cpu" and not (squares.isfinite() & (squares > _FAINT)).all():
        return _products(gradients, _wide_dots, measured.device)
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


def _products(
    gradients: Sequence[Sequence[Tensor | None]], dots: Callable[[Tensor, Tensor], list[Tensor]], device: torch.device
) -> Tensor:
    """The Gramian, of the inner products of blocks of each tensor."""
    m = len(gradients)
    partial: dict[tuple[int, int], list[Tensor]] = {(i, j): [] for i in range(m) for j in range(i, m)}
    for tensors in zip(*gradients, strict=True):
        for (i, j), found in partial.items():
            a, b = tensors[i], tensors[j]
            if a is not None and b is not None:
                found += dots(a, b)
    zero = torch.zeros((), dtype=torch.float64, device=device)
    sums = {pair: _sum(found, device) if found else zero for pair, found in partial.items()}
    return torch.stack([sums[min(i, j), max(i, j)] for i in range(m) for j in range(m)]).reshape(m, m)


def _sum(scalars: Sequence[Tensor], device: torch.device) -> Tensor:
    parts: dict[torch.device, list[Tensor]] = {}
    for scalar in scalars:
        parts.setdefault(scalar.device, []).append(scalar)
    return reduce(torch.add, [torch.stack(part).sum(dtype=torch.float64).to(device) for part in parts.values()])


def _dots(a: Tensor, b: Tensor) -> list[Tensor]:
    """Inner products of blocks, in float64; of float32 on a CPU, where the products stay in its range."""
    if a.device.type != "cpu":
        return _wide_dots(a, b)
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if a.dtype in (torch.float16, torch.bfloat16):
        a, b = a.float(), b.float()
    # Seven times faster than in float64, as it needs no memory; exact to 1e-7 a block.
    return [torch.dot(x, y) for x, y in _blocks(a, b, _BLOCK)]


def _wide_dots(a: Tensor, b: Tensor) -> list[Tensor]:
    """Inner products of blocks in float64, of tensors of any range."""
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if a.device.type == "mps":  # Without float64: what is divided by its largest entry stays in range.
        tops = [t.abs().amax().clamp(min=torch.finfo(torch.float32).tiny).float() for t in (a, b)]
        product = (a / tops[0] * (b / tops[1])).sum()
        return [product.cpu().double() * tops[0].cpu().double() * tops[1].cpu().double()]
    # In blocks, as it needs memory for three tensors of a block's size.
    return [(x.double() * y).sum() for x, y in _blocks(a, b, 512 * _BLOCK)]


def _blocks(a: Tensor, b: Tensor, size: int) -> Iterable[tuple[Tensor, Tensor]]:
    a, b = a.flatten(), b.flatten()
    return zip(a.split(size), b.split(size), strict=True) if len(a) > size else [(a, b)]
