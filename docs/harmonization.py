"""Draw ``harmonization.png``, the picture of what harmonization does to two gradients.

python docs/harmonization.py
"""

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.patches import FancyArrowPatch, Wedge
from torch import Tensor

from gh_downstream.files import write_atomically
from gh_downstream.harmonization import GH, GHPlusPlus, Sum
from gh_downstream.reporting.plots import INK, WEIGHTING_COLORS, Axes, Figure, to_png


def turned_gradients(gradients: Tensor, weighting: str, lam: float = 0.5) -> Tensor:
    r"""Turn two gradients as a weighting does; their sum is its update.

    .. math::
        \text{GH:}\quad \tilde g_1 = g_1 - \frac{\langle g_1, g_2 \rangle}{|g_2|^2}\, g_2
        \qquad \text{GH++:}\quad \tilde g_1 = \frac{n_1}{s} (\cos\beta\, u_1 + \sin\alpha\, u_2)

    with :math:`\alpha = \lambda\delta`, :math:`\beta = (1-\lambda)\delta`, :math:`u_i = g_i / n_i`; for the other
    gradient the indices, and alpha and beta, are exchanged (arXiv 2408.00288). Without conflict nothing turns.

    Args:
        gradients: The two gradients, of shape ``[2, d]``, which is that of the turned ones too.
        weighting: ``"sum"``, ``"gh"`` or ``"gh++"``.
        lam: Share of the turn that the first gradient takes in GH++.
    """
    lengths = gradients.norm(dim=1, keepdim=True)
    units = gradients / lengths
    others = units.flip(0)
    cosine = units[0] @ units[1]
    if weighting == "sum" or cosine >= 0:
        return gradients
    if weighting == "gh":
        return lengths * (units - cosine * others)
    sine = (1 - cosine**2).sqrt()
    turns = torch.atan2(-cosine, sine) * gradients.new_tensor([[lam], [1 - lam]])
    return lengths / sine * (turns.flip(0).cos() * units + turns.sin() * others)


def harmonization_figure(angle: float = 130.0, norms: tuple[float, float] = (1.0, 0.5)) -> Figure:
    """Draw what the plain sum, GH and exact GH++ make of two gradients that conflict.

    A panel for each has the gradients, the turned gradients, the update, which is that of the weighting of
    :mod:`gh_downstream.harmonization`, and shaded the directions that neither task opposes.

    Args:
        angle: Angle between the gradients in degrees, over 90 and under 180.
        norms: Norms of the gradients.

    Raises:
        ValueError: The gradients do not conflict, or are exactly opposite.
    """
    if not 90 < angle < 180:
        raise ValueError(f"gradients conflict at angles over 90 and under 180 degrees, got {angle}")
    # The directions that neither task opposes lie around the vertical.
    half = torch.tensor(math.radians(angle / 2), dtype=torch.float64)
    directions = torch.stack([torch.stack([half.sin(), half.cos()]), torch.stack([-half.sin(), half.cos()])])
    gradients = torch.tensor(norms, dtype=torch.float64)[:, None] * directions
    weightings = {"sum": ("Plain sum", Sum()), "gh": ("GH", GH()), "gh++": ("GH++", GHPlusPlus())}
    figure = Figure(figsize=(10.0, 3.5), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    drawn = [gradients]
    for axes, (word, (name, weighting)) in zip(panels, weightings.items(), strict=True):
        weights = weighting(gradients @ gradients.T)
        update = weights @ gradients
        turned = turned_gradients(gradients, word)
        _draw_vectors(axes, gradients, turned, update, WEIGHTING_COLORS[word])
        drawn += [turned, update[None]]
        opposed = [f"$g_{i}$" for i, along in enumerate((gradients @ update).tolist(), start=1) if along < 0]
        gain = float(update.norm() / gradients.sum(0).norm())
        axes.set_title(name, fontsize=13, color=WEIGHTING_COLORS[word], fontweight="bold")
        axes.set_xlabel(
            f"$v = {weights[0]:.2f}\\,g_1 + {weights[1]:.2f}\\,g_2$,   $|v| / |g_1 + g_2| = {gain:.2f}$\n"
            f"opposes {' and '.join(opposed) or 'neither gradient'}",
            fontsize=11,
            color=INK,
        )
    left, right, top = (float(value) for value in (*torch.cat(drawn)[:, 0].aminmax(), torch.cat(drawn)[:, 1].max()))
    margin = 0.15 * max(right - left, top)
    panels[0].set(xlim=(left - margin, right + margin), ylim=(-0.4 * margin, top + margin))
    look: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 10, "color": "#555555"}
    panels[0].text(0, top + 0.8 * margin, "opposes neither\ngradient", **look)
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
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _draw_arrow(axes: Axes, vector: Tensor, label: str, color: str, **line: Any) -> None:
    x, y = vector.tolist()
    head: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 14, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch((0, 0), (x, y), color=color, **head, **line))
    beyond = (12 * x / math.hypot(x, y), 12 * y / math.hypot(x, y))
    centered: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 14, "color": color}
    axes.annotate(label, (x, y), xytext=beyond, textcoords="offset points", **centered)


if __name__ == "__main__":
    write_atomically(Path(__file__).with_suffix(".png"), to_png(harmonization_figure()))
