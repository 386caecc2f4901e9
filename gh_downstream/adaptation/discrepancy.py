"""Discrepancies between two samples of features: MMD and CORAL."""

from collections.abc import Sequence

import torch
from torch import Tensor


def mmd(source: Tensor, target: Tensor, bandwidths: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0)) -> Tensor:
    r"""Squared maximum mean discrepancy with a mixture of Gaussian kernels.

    .. math::
        \mathrm{MMD}^2 = \overline{k(x, x')} + \overline{k(y, y')} - 2\, \overline{k(x, y)}, \qquad
        k(x, y) = \frac{1}{B} \sum_{b=1}^{B} \exp\!\Big( -\frac{|x - y|^2}{2 f_b \sigma^2} \Big)

    (Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, equations 5 and 3; several kernels as in Long et al.,
    "Learning Transferable Features with Deep Adaptation Networks", ICML 2015.) :math:`\sigma^2` is the median squared
    distance between different points of the joined sample (the median heuristic). It is a constant to autograd:
    otherwise the loss could fall by spreading the features.

    Args:
        source: Features :math:`x` of shape ``[n, d]``.
        target: Features :math:`y` of shape ``[m, d]``.
        bandwidths: Factors :math:`f_b` of :math:`\sigma^2`, each above 0.

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
        n, m = len(x), len(y)
        points = torch.cat([x, y])
        points = points - points.mean(dim=0).detach()  # the kernel ignores the mean; the rounding of x.y does not
        squares = points.square().sum(dim=1)
        distances = (squares[:, None] + squares - 2 * points @ points.T).clamp(min=0)
        distances = distances - torch.diag(distances.diagonal())  # exactly 0, without rounding
        pairs = torch.triu_indices(n + m, n + m, offset=1, device=x.device)
        variance = distances.detach()[pairs[0], pairs[1]].median().clamp(min=torch.finfo(x.dtype).tiny ** 0.5)
        kernel = torch.stack([torch.exp(-distances / (2 * factor * variance)) for factor in bandwidths]).mean(dim=0)
        return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


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
