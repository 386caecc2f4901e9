"""Discrepancies between two samples of features: MMD and CORAL."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from gh_downstream.adaptation.rows import chunks, own_rows, sum_of_rows


def mmd(
    source: Tensor,
    target: Tensor,
    bandwidths: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
    *,
    distributed: bool = False,
) -> Tensor:
    r"""Squared maximum mean discrepancy with a mixture of Gaussian kernels.

    .. math::
        \mathrm{MMD}^2 = \overline{k(x, x')} + \overline{k(y, y')} - 2\, \overline{k(x, y)}, \qquad
        k(x, y) = \frac{1}{B} \sum_{b=1}^{B} \exp\!\Big( -\frac{|x - y|^2}{2 f_b \sigma^2} \Big)

    (Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, equations 5 and 3; several kernels as in Long et al.,
    "Learning Transferable Features with Deep Adaptation Networks", ICML 2015.) :math:`\sigma^2` is the median squared
    distance between different points of the joined sample (the median heuristic). It is a constant to autograd:
    otherwise the loss could fall by spreading the features. The kernel is computed some rows at a time: memory grows
    with the number of points, not with its square.

    Args:
        source: Features :math:`x` of shape ``[n, d]``.
        target: Features :math:`y` of shape ``[m, d]``.
        bandwidths: Factors :math:`f_b` of :math:`\sigma^2`, each above 0.
        distributed: Share the rows of the kernel between the processes of ``torch.distributed``, which all have the
            same samples: the discrepancy, and its gradient, is the mean of what they return.

    Returns:
        Scalar in [0, 2], differentiable in both samples, in float32 or wider: the biased form, which is never negative
        up to rounding, and zero for equal samples.

    Raises:
        ValueError: A sample is not of shape ``[n, d]``, has fewer than two points, or the dimensions differ; or a
            bandwidth is not positive.
    """
    x, y = _check(source, target)
    if not bandwidths or min(bandwidths) <= 0:
        raise ValueError(f"bandwidths takes one or more factors above 0, got {list(bandwidths)}")
    with torch.autocast(x.device.type, enabled=False):  # differences of large squares: not in half precision
        n, count = len(x), len(x) + len(y)
        points = torch.cat([x, y])
        points = points - points.mean(dim=0).detach()  # the kernel ignores the mean; the rounding of x.y does not
        variance = _median_distance(points.detach(), distributed).clamp(min=torch.finfo(x.dtype).tiny ** 0.5)
        signs = torch.cat([x.new_full((n,), 1 / n), x.new_full((len(y),), -1 / len(y))])

        def term(rows: slice, points: Tensor) -> Tensor:
            distances = _distances(rows, points)
            closer = x.new_zeros(())  # to the source than to the target
            for factor in bandwidths:
                kernel = (distances * (-0.5 / (factor * variance))).exp()
                closer = closer + kernel[:, :n].mean(dim=1) - kernel[:, n:].mean(dim=1)
            return (closer * signs[rows]).sum() / len(bandwidths)

        return sum_of_rows(term, count, count, [points], distributed)


def _distances(rows: slice, points: Tensor) -> Tensor:
    """Squared distances of some points to all of them, of shape ``[rows, points]``."""
    squares = points.square().sum(dim=1)
    distances = (squares[rows, None] + squares - 2 * points[rows] @ points.T).clamp(min=0)
    distances.diagonal(rows.start).zero_()  # exactly, without rounding
    return distances


def _median_distance(points: Tensor, distributed: bool) -> Tensor:
    """The median squared distance of different points, the lower one of two, without all distances at a time.

    The bits of numbers that are not negative are in the order of the numbers: those of the median are found by counts,
    16 at a time. Nothing waits for the device.
    """
    n = len(points)
    # Each pair is there twice, after the n zeros of each point and itself.
    place = torch.full((1,), n + 2 * ((n * (n - 1) // 2 - 1) // 2), device=points.device)
    bits = torch.finfo(points.dtype).bits
    kind = {32: torch.int32, 64: torch.int64}[bits]
    found = torch.zeros(1, dtype=kind, device=points.device)
    for shift in range(bits - 16, -1, -16):
        counts = torch.zeros(2**16, dtype=torch.int64, device=points.device)
        for rows in chunks(own_rows(n, distributed)[0], n):
            digits = _distances(rows, points).abs().view(kind).flatten() >> shift  # NaN and zero may have a sign
            counts.scatter_add_(0, (digits & 0xFFFF).long(), (digits >> 16 == found).long())
        if distributed:
            dist.all_reduce(counts)
        upto = counts.cumsum(0)
        digit = torch.searchsorted(upto, place, right=True)
        place = place - upto[digit] + counts[digit]
        found = (found << 16) | digit.to(kind)
    return found.view(points.dtype)[0]


def coral(source: Tensor, target: Tensor) -> Tensor:
    r"""Squared distance between the covariances of two samples.

    .. math:: L = \frac{1}{4 d^2} \lVert C_S - C_T \rVert_F^2

    with the covariances normalized by :math:`n - 1` (Sun and Saenko, "Deep CORAL", ECCV 2016 workshops,
    arXiv 1607.01719, equations 1 to 3).

    Samples, type and errors are as in :func:`mmd`; the scalar is at least 0.
    """
    x, y = _check(source, target)
    with torch.autocast(x.device.type, enabled=False):
        centred = [z - z.mean(dim=0) for z in (x, y)]
        of_source, of_target = (z.T @ z / (len(z) - 1) for z in centred)
        return (of_source - of_target).square().sum() / (4 * x.shape[1] ** 2)


def _check(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both samples in float32 or wider, or say what is wrong with their shapes."""
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(
            f"a discrepancy takes features of shapes [n, d] and [m, d], "
            f"got {list(source.shape)} and {list(target.shape)}"
        )
    if min(len(source), len(target)) < 2:
        raise ValueError(
            f"a discrepancy takes two points or more, got {len(source)} of source, {len(target)} of target"
        )
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    return source.to(dtype), target.to(dtype)
