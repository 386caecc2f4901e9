"""Measure: the Gramian of several gradients, in float64, without a concatenated copy of any of them."""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

_BLOCK = 1 << 16
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
    measured = _products(gradients, _dot, home(first))
    squares = measured.diagonal()
    # On a CPU a look at the result costs nothing; elsewhere all is in float64 from the first.
    if measured.device.type == "cpu" and not (squares.isfinite() & (squares > _FAINT)).all():
        return _products(gradients, _wide_dot, measured.device)
    return measured


def home(device: torch.device) -> torch.device:
    """Where what is measured on a device lives: there, but for MPS, which has no float64, on the CPU."""
    return torch.device("cpu") if device.type == "mps" else device


def _products(
    gradients: Sequence[Sequence[Tensor | None]], dot: Callable[[Tensor, Tensor], Tensor], device: torch.device
) -> Tensor:
    m = len(gradients)
    partial: dict[tuple[int, int], list[Tensor]] = {}
    for tensors in zip(*gradients, strict=True):
        for i in range(m):
            for j in range(i, m):
                a, b = tensors[i], tensors[j]
                if a is not None and b is not None:
                    partial.setdefault((i, j), []).append(dot(a, b).to(device))
    zero = torch.zeros((), dtype=torch.float64, device=device)
    upper = [[torch.stack(partial[i, j]).sum() if (i, j) in partial else zero for j in range(i, m)] for i in range(m)]
    return torch.stack([upper[min(i, j)][abs(i - j)] for i in range(m) for j in range(m)]).reshape(m, m)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product in float64; of float32 on a CPU where the products stay in its range."""
    if a.device.type != "cpu":
        return _wide_dot(a, b)
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if a.dtype in (torch.float16, torch.bfloat16):
        a, b = a.float(), b.float()
    # Seven times faster than in float64, as it needs no memory; exact to 1e-7 a block.
    return torch.stack([torch.dot(x, y) for x, y in _blocks(a, b, _BLOCK)]).sum(dtype=torch.float64)


def _wide_dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product in float64, of tensors of any range."""
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if a.device.type == "mps":  # Without float64: what is divided by its largest entry stays in range.
        tops = [t.abs().amax().clamp(min=torch.finfo(torch.float32).tiny).float() for t in (a, b)]
        product = (a / tops[0] * (b / tops[1])).sum()
        return product.cpu().double() * tops[0].cpu().double() * tops[1].cpu().double()
    # In blocks, as it needs memory for three tensors of a block's size.
    return reduce(torch.add, [(x.double() * y).sum() for x, y in _blocks(a, b, 512 * _BLOCK)])


def _blocks(a: Tensor, b: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(a.flatten().split(size), b.flatten().split(size), strict=True)
