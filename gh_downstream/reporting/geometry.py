"""The picture of what harmonization does to two gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gh_downstream.harmonization import GH, GHPlusPlus, Sum
from gh_downstream.reporting.plots import INK, METHOD_COLORS

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, Wedge
except ImportError as error:
    message = "figures need matplotlib: pip install 'gh_downstream[training]'"
    raise ImportError(message) from error


def turned_gradients(gradients: Tensor, method: str, lam: float = 0.5) -> Tensor:
    r"""Turn two gradients as a method does; their sum is the method's update.

    .. math::
        \text{GH:}\quad \tilde g_1 = g_1 - \frac{\langle g_1, g_2 \rangle}{|g_2|^2}\, g_2
        \qquad \text{GH++:}\quad \tilde g_1 = \frac{n_1}{s} (\cos\beta\, u_1 + \sin\alpha\, u_2)

    with :math:`\alpha = \lambda\delta`, :math:`\beta = (1-\lambda)\delta`, :math:`u_i = g_i / n_i`; for the other
    gradient the indices, and alpha and beta, are exchanged (arXiv 2408.00288). Without conflict nothing turns.

    Args:
        gradients: The two gradients, of shape ``[2, d]``.
        method: ``"sum"``, ``"gh"`` or ``"gh++"``.
        lam: Share of the turn that the first gradient takes in GH++.

    Returns:
        The turned gradients, of shape ``[2, d]``.
    """
    g1, g2 = gradients
    inner = g1 @ g2
    if method == "sum" or inner >= 0:
        return gradients
    if method == "gh":
        return torch.stack([g1 - inner / (g2 @ g2) * g2, g2 - inner / (g1 @ g1) * g1])
    n1, n2 = g1.norm(), g2.norm()
    u1, u2 = g1 / n1, g2 / n2
    s = (1 - (u1 @ u2) ** 2).sqrt()
    delta = torch.atan2(-(u1 @ u2), s)
    alpha, beta = lam * delta, (1 - lam) * delta
    return torch.stack(
        [
            n1 / s * (beta.cos() * u1 + alpha.sin() * u2),
            n2 / s * (alpha.cos() * u2 + beta.sin() * u1),
        ]
    )


def harmonization_figure(angle: float = 130.0, norms: tuple[float, float] = (1.0, 0.5), lam: float = 0.5) -> Figure:
    """Draw what the plain sum, GH and exact GH++ make of two gradients that conflict.

    The update is computed by the weightings of :mod:`gh_downstream.harmonization` from the Gramian of the two
    gradients.

    Args:
        angle: Angle between the gradients in degrees, over 90 and under 180.
        norms: Norms of the gradients.
        lam: Share of the turn that the first gradient takes in GH++.

    Returns:
        The figure: a panel for each method with the gradients, the turned gradients, the update, and shaded the
        directions that neither task opposes.

    Raises:
        ValueError: The gradients do not conflict, or are exactly opposite.
    """
    if not 90 < angle < 180:
        raise ValueError(f"gradients conflict at angles over 90 and under 180 degrees, got {angle}")
    # The directions that neither task opposes lie around the vertical.
    half = torch.tensor(math.radians(angle / 2), dtype=torch.float64)
    directions = torch.stack([torch.stack([half.sin(), half.cos()]), torch.stack([-half.sin(), half.cos()])])
    gradients = torch.tensor(norms, dtype=torch.float64)[:, None] * directions

    methods = {"sum": ("Plain sum", Sum()), "gh": ("GH", GH()), "gh++": ("GH++", GHPlusPlus(lam))}
    figure = Figure(figsize=(10.0, 3.5), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    drawn = [gradients]
    for axes, (method, (name, weighting)) in zip(panels, methods.items(), strict=True):
        weights = weighting(gradients @ gradients.T)
        update = weights @ gradients
        turned = turned_gradients(gradients, method, lam)
        _draw_vectors(axes, gradients, turned, update, METHOD_COLORS[method])
        drawn += [turned, update[None]]
        opposed = [f"$g_{i}$" for i, along in enumerate((gradients @ update).tolist(), start=1) if along < 0]
        gain = float(update.norm() / gradients.sum(0).norm())
        axes.set_title(name, fontsize=13, color=METHOD_COLORS[method], fontweight="bold")
        axes.set_xlabel(
            f"$v = {weights[0]:.2f}\\,g_1 + {weights[1]:.2f}\\,g_2$,   $|v| / |g_1 + g_2| = {gain:.2f}$\n"
            f"opposes {' and '.join(opposed) or 'neither gradient'}",
            fontsize=11,
            color=INK,
        )
    left, right, top = (float(value) for value in (*torch.cat(drawn)[:, 0].aminmax(), torch.cat(drawn)[:, 1].max()))
    margin = 0.15 * max(right - left, top)
    panels[0].set_xlim(left - margin, right + margin)
    panels[0].set_ylim(-0.4 * margin, top + margin)
    panels[0].text(
        0, top + 0.8 * margin, "opposes neither\ngradient", ha="center", va="top", fontsize=10, color="#555555"
    )
    return figure


def _draw_vectors(axes: Axes, gradients: Tensor, turned: Tensor, update: Tensor, color: str) -> None:
    first, second = (math.degrees(math.atan2(y, x)) for x, y in gradients.tolist())
    radius = 10 * float(gradients.norm())  # Out of sight: the wedge has no end.
    axes.add_patch(Wedge((0, 0), radius, second - 90, first + 90, facecolor="#999999", alpha=0.18, linewidth=0))
    for index, vector in enumerate(gradients, start=1):
        _draw_arrow(axes, vector, f"$g_{index}$", INK, linewidth=2.0)
    for index, vector in enumerate(turned, start=1):
        axes.plot(*torch.stack([vector, update]).T.tolist(), color=color, linewidth=0.8, linestyle=":")
        if not torch.equal(turned, gradients):
            _draw_arrow(axes, vector, rf"$\tilde{{g}}_{index}$", color, linewidth=1.8, linestyle="--")
    _draw_arrow(axes, update, "$v$", color, linewidth=3.2)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _draw_arrow(axes: Axes, vector: Tensor, label: str, color: str, linewidth: float, linestyle: str = "-") -> None:
    x, y = vector.tolist()
    axes.add_patch(
        FancyArrowPatch(
            (0, 0),
            (x, y),
            arrowstyle="-|>",
            mutation_scale=14,
            shrinkA=0,
            shrinkB=0,
            color=color,
            linewidth=linewidth,
            linestyle=linestyle,
        )
    )
    length = math.hypot(x, y)
    axes.annotate(
        label,
        (x, y),
        xytext=(12 * x / length, 12 * y / length),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=14,
        color=color,
    )
