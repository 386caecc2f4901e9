r"""Weigh: from the Gramian of the tasks' gradients to one weight for each task.

A weighting is any callable that takes the Gramian :math:`G_{ij} = \langle g_i, g_j \rangle` of shape ``[m, m]``
and returns the weights :math:`\tau` of shape ``[m]``; the update is :math:`v = \sum_i \tau_i g_i`. Those of this
module are pure functions of the Gramian, without state, randomness or host synchronization (GH++ of more than
two tasks excepted, whose eigendecomposition synchronizes on a GPU).

Notation: :math:`n_i = |g_i|`, :math:`\theta` the angle between two gradients, :math:`c = \cos\theta`,
:math:`s = \sin\theta`, :math:`\delta = \theta - \pi/2` the excess over the right angle. The paper is Huang, Song
and Zhang, "Gradient Harmonization in Unsupervised Domain Adaptation", TPAMI 2024, arXiv 2408.00288.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from gh_downstream.harmonization.checks import check_at_least

Weighting = Callable[..., Tensor]
"""Any callable from a Gramian of shape ``[m, m]`` to weights of shape ``[m]``; see :func:`takes_losses` for another."""


def guarded(weighting: Weighting, gramian: Tensor, losses: Mapping[str, float] | None = None) -> Tensor:
    """Apply a weighting, with weights of one where the Gramian is not finite.

    A Gramian that overflowed must not hide the overflow: with weights of one the infinite gradients reach the
    loss scaler, which then skips the step. The weighting itself is never shown a value that is not finite.

    Args:
        weighting: Any weighting.
        gramian: Gramian of shape ``[m, m]``.
        losses: The losses by task, for a weighting that :func:`takes_losses`.

    Returns:
        Weights of shape ``[m]``, without a graph.

    Raises:
        ValueError: The weighting returned something else.
    """
    if isinstance(weighting, _GramianWeighting):
        return weighting(gramian)  # guards itself
    finite = gramian.isfinite().all()
    # What remembers what it is shown is shown nothing then, for which the host waits.
    remembers = losses is not None or bool(getattr(weighting, "state_dict", dict)())
    if remembers and not (finite and all(map(math.isfinite, (losses or {}).values()))):
        return torch.ones_like(gramian.diagonal())
    identity = torch.eye(len(gramian), dtype=gramian.dtype, device=gramian.device)
    seen = () if losses is None else (losses,)
    weights = weighting(torch.where(finite, gramian, identity), *seen)
    if not isinstance(weights, Tensor) or weights.shape != gramian.shape[:1]:
        what = f"shape {list(weights.shape)}" if isinstance(weights, Tensor) else f"type {type(weights).__name__}"
        raise ValueError(f"a weighting returns weights of shape [{len(gramian)}], {weighting!r} returned {what}")
    return torch.where(finite, weights.detach().to(gramian), 1.0)


@dataclass(frozen=True, repr=False)
class _GramianWeighting(ABC):
    """A closed form of the Gramian, guarded against overflow and capped by ``max_weight``."""

    max_weight: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_at_least("max_weight", self.max_weight, 1)  # No conflict gives 1.

    @abstractmethod
    def _weights(self, gramian: Tensor) -> Tensor:
        """Weights of shape ``[m]`` of a finite Gramian of shape ``[m, m]``."""

    @abstractmethod
    def _word(self) -> list[str]:
        """The word, but for the cap, in the parts that colons join."""

    def __repr__(self) -> str:
        """The word that :func:`~gh_downstream.harmonization.parse_weighting` reads."""
        cap = [] if self.max_weight is None else [f"max_weight={_shown(self.max_weight)}"]
        return ":".join([*self._word(), *cap])

    def __call__(self, gramian: Tensor) -> Tensor:
        """Return the weights of shape ``[m]`` for a Gramian of shape ``[m, m]``.

        Raises:
            ValueError: ``gramian`` is not a square matrix, or has a number of tasks that the method cannot weigh.
        """
        if gramian.ndim != 2 or gramian.shape[0] != gramian.shape[1]:
            raise ValueError(f"a weighting takes a Gramian of shape [m, m], got {list(gramian.shape)}")
        weights = guarded(self._weights, gramian)
        return weights if self.max_weight is None else weights.clamp(-self.max_weight, self.max_weight)


def _norms(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of shape ``[m]``, one for a vanishing gradient, and the mask of gradients that do not vanish."""
    squared = gramian.diagonal()
    alive = squared > torch.finfo(gramian.dtype).tiny
    return torch.where(alive, squared, 1.0).sqrt(), alive


def _correlation(gramian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Correlation ``[m, m]`` with unit diagonal, norms ``[m]``, and the mask of gradients that do not vanish."""
    norms, alive = _norms(gramian)
    correlation = (gramian / (norms * norms[:, None])).clamp(-1.0, 1.0)  # in this order bitwise symmetric
    correlation = torch.where(alive & alive[:, None], correlation, 0.0)
    on_diagonal = torch.eye(len(gramian), dtype=torch.bool, device=gramian.device)
    return torch.where(on_diagonal, 1.0, correlation), norms, alive


@dataclass(frozen=True, repr=False)
class Sum(_GramianWeighting):
    r"""The plain sum of the losses, :math:`\tau_i = 1`: the baseline that the others are compared with."""

    def _weights(self, gramian: Tensor) -> Tensor:
        return torch.ones_like(gramian.diagonal())

    def _word(self) -> list[str]:
        return ["sum"]


@dataclass(frozen=True, repr=False)
class Fixed(_GramianWeighting):
    r"""A fixed ``weight`` of at least 0 of the first task, :math:`\tau = (w, 1, \ldots)`: as tuned by hand."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("weight", self.weight, 0)

    def _weights(self, gramian: Tensor) -> Tensor:
        first, others = torch.ones_like(gramian.diagonal()).split([1, len(gramian) - 1])
        return torch.cat([self.weight * first, others])

    def _word(self) -> list[str]:
        return ["fixed", f"weight={_shown(self.weight)}"]


@dataclass(frozen=True, repr=False)
class GH(_GramianWeighting):
    r"""Gradient Harmonization: each gradient loses its component against every gradient that it conflicts with.

    .. math:: \tau_1 = 1 - c\,\frac{n_2}{n_1}, \qquad \tau_2 = 1 - c\,\frac{n_1}{n_2} \qquad (c < 0)

    and :math:`\tau = (1, 1)` without conflict (arXiv 2408.00288, GH in section 3). For :math:`m` tasks
    :math:`\tau_i = 1 - \sum_{j} \min(0, G_{ij}) / G_{ii}`: all pairwise projections against the original gradients.

    For two tasks the update is that of PCGrad, and twice that of UPGrad. It is conflict-free:
    :math:`\langle v, g_i \rangle = n_i^2 \sin^2\theta \ge 0`. For more than two tasks it need not be: in 0.2 % of
    random triples in 20 dimensions with a conflict, and 27 % in 3 dimensions, the update still opposes some task.

    .. warning:: The weights hold a norm ratio and are unbounded: 444 was seen in the first steps on digits, 1360
        on detection. ``max_weight`` caps them; a capped update need not be conflict-free.

    Args:
        max_weight: Largest absolute value of a weight, at least 1; no cap by default.
    """

    def _weights(self, gramian: Tensor) -> Tensor:
        correlation, norms, alive = _correlation(gramian)
        # G_ij / G_ii as a ratio of norms: the square of a small norm may underflow where the ratio does not.
        opposing = correlation.clamp(max=0.0) @ torch.where(alive, norms, 0.0)
        return 1.0 - opposing / norms

    def _word(self) -> list[str]:
        return ["gh"]


@dataclass(frozen=True, repr=False)
class GHPlusPlus(_GramianWeighting):
    r"""GH++ in its exact form: conflicting gradients are turned to a right angle and keep their norms.

    With :math:`\alpha = \lambda\delta` and :math:`\beta = \delta - \alpha`, for :math:`c < 0`,

    .. math::
        \tau_1 = \frac{\cos\beta + (n_2/n_1)\sin\beta}{s}, \qquad
        \tau_2 = \frac{\cos\alpha + (n_1/n_2)\sin\alpha}{s}

    and :math:`\tau = (1, 1)` without conflict. This is the rotation that the paper (arXiv 2408.00288, GH++) describes:
    :math:`g_1` turns by :math:`\lambda\delta`, :math:`g_2` by :math:`(1-\lambda)\delta`, in total by :math:`\delta`
    where GH turns by :math:`2\delta`, and :math:`|v|^2 = n_1^2 + n_2^2`. The weights in the published code are another
    formula, see :class:`GHPlusPlusOfficial`. :math:`s` is replaced by :math:`\max(s, s_{min})`, so that the update
    of two tasks vanishes for exactly opposite gradients, as that of GH does.

    **Conflict-free** against the original gradients exactly when :math:`\tan\alpha \le n_1/n_2` and
    :math:`\tan\beta \le n_2/n_1`: a fixed :math:`\lambda` cannot promise it. Over random angles of 90 to 180 degrees
    and norm ratios of 0.1 to 10, 55 % of the updates with :math:`\lambda = 1/2` oppose one of the tasks (73 % of the
    plain sums). ``lam="adaptive"``, that is :math:`\lambda = \frac{2}{\pi}\operatorname{atan2}(n_1, n_2)`, never does;
    nor does ``guard=True``, which moves a given :math:`\lambda` into the safe interval
    :math:`[1 - \operatorname{atan2}(n_2, n_1)/\delta,\; \operatorname{atan2}(n_1, n_2)/\delta]`.

    For :math:`m > 2` tasks with correlation :math:`C` and :math:`N = \operatorname{diag}(n)`,

    .. math::
        T = \max(C, 0), \qquad
        A = T^{1/2} \bigl(T^{1/2} W C W T^{1/2}\bigr)^{-1/2} T^{1/2} W, \qquad
        \tau = N^{-1} A^\top n

    (the optimal-transport map from :math:`C` to :math:`T`, :math:`W = I`): conflicting pairs become orthogonal, acute
    pairs keep their angle, the sum of squared deviations is the least possible. It reduces to :math:`\lambda = 1/2`
    for two tasks. ``lam="adaptive"`` weighs the deviations by :math:`W = N^{-1}`, which turns the weaker gradients
    less; other values of ``lam``, and ``guard``, are defined for two tasks only. For more than two tasks no choice is
    conflict-free in every case, and :math:`T` is made positive semi-definite first where it is not.

    .. warning:: The weights hold a norm ratio and :math:`1/s`, and are unbounded up to :math:`1/s_{min}` times the norm
        ratio. ``max_weight`` caps them; a capped update need not be conflict-free.

    Args:
        lam: Share of the turn that the first task takes, in ``[0, 1]``, or ``"adaptive"``.
        guard: Move ``lam`` into the interval in which the update is conflict-free.
        s_min: Lower bound of the sine in the denominator, in ``(0, 1)``.
        max_weight: Largest absolute value of a weight, at least 1; no cap by default.

    Raises:
        ValueError: An argument is out of its range.
    """

    lam: float | Literal["adaptive"] = 0.5
    guard: bool = False
    s_min: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lam != "adaptive":
            _check_lambda(self.lam)
        if not isinstance(self.guard, bool):
            raise ValueError(f"guard must be true or false, got {self.guard!r}")
        if not isinstance(self.s_min, (int, float)) or not 0 < self.s_min < 1:
            raise ValueError(f"s_min must be in (0, 1), got {self.s_min!r}")

    def _weights(self, gramian: Tensor) -> Tensor:
        return self._two_tasks(gramian) if len(gramian) == 2 else self._many_tasks(gramian)

    def _word(self) -> list[str]:
        turn = [] if self.lam == 0.5 else [_shown(self.lam)]
        floor = [] if self.s_min == 1e-3 else [f"s_min={_shown(self.s_min)}"]
        return ["gh++", *turn, *(["guard"] if self.guard else []), *floor]

    def _two_tasks(self, gramian: Tensor) -> Tensor:
        correlation, norms, _ = _correlation(gramian)
        ratios = norms / norms.flip(0)  # n1 / n2, n2 / n1
        c = correlation[0, 1].clamp(max=0.0)
        s = ((1.0 - c) * (1.0 + c)).sqrt()
        delta = torch.atan2(-c, s)
        # The largest turn of g1 (of g2) that leaves v on its own side is atan(n1/n2) (atan(n2/n1)).
        if self.lam == "adaptive":
            alpha = (2.0 / math.pi) * ratios[0].atan() * delta
        else:
            alpha = self.lam * delta
            if self.guard:
                most = ratios.atan()
                alpha = torch.minimum(torch.maximum(alpha, delta - most[1]), most[0])
        beta = delta - alpha
        turns = torch.stack([beta, alpha])
        tau = (turns.cos() + turns.sin() / ratios) / s.clamp(min=self.s_min)
        return torch.where(c < 0, tau, 1.0)

    def _many_tasks(self, gramian: Tensor) -> Tensor:
        if self.guard or self.lam not in (0.5, "adaptive"):
            raise ValueError(
                f"GH++ of {len(gramian)} tasks takes lam=0.5 or lam='adaptive' and no guard, got {self}; "
                "other values are defined for two tasks only"
            )
        correlation, norms, alive = _correlation(gramian)
        target = _nearest_correlation(correlation.clamp(min=0.0))
        # W up to its scale, which cancels; the largest entry is one.
        w = norms.min() / norms if self.lam == "adaptive" else torch.ones_like(norms)
        root = _power(target, 0.5)
        # The smallest eigenvalue of two nearly opposite gradients is 1 + c, about s^2 / 2.
        floor = w.min() ** 2 * (self.s_min**2 / 2)
        middle = _power(root @ (w[:, None] * correlation * w) @ root, -0.5, floor)
        transport = root @ middle @ root * w
        tau = transport.T @ torch.where(alive, norms, 0.0) / norms
        conflict = (correlation < 0).any()
        return torch.where(conflict & alive, tau, 1.0)


@dataclass(frozen=True, repr=False)
class GHPlusPlusOfficial(_GramianWeighting):
    r"""The GH++ weights of the authors' published code, for comparison and reproduction; two tasks.

    .. math:: \tau_1 = 1 + 2\sin(\alpha/2), \qquad \tau_2 = 1 - 2\sin(\beta/2), \qquad
        \alpha = \lambda\delta,\ \beta = (1-\lambda)\delta

    and :math:`\tau = (1, 1)` without conflict. **Not symmetric**: the first task is the alignment, the second the task
    loss, and the first is boosted. The weights depend on the angle alone and lie in ``[1, 2.414]`` and ``[-0.414, 1]``;
    near a right angle they hardly move. :math:`\tau_2 < 0` when :math:`(1-\lambda)\delta` exceeds 60 degrees.

    They do not turn the gradients to a right angle (that is :class:`GHPlusPlus`), and they are **not conflict-free**:
    73 % of the updates oppose some task over random angles and norm ratios, as many as those of the plain sum.
    The published code takes ``acos`` of a cosine that is not clamped and returns NaN for nearly opposite
    gradients; this does not.

    Args:
        lam: Share :math:`\lambda` in ``[0, 1]``.
        max_weight: Largest absolute value of a weight, at least 1; no cap by default.

    Raises:
        ValueError: An argument is out of its range.
    """

    lam: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_lambda(self.lam)

    def _weights(self, gramian: Tensor) -> Tensor:
        if len(gramian) != 2:
            raise ValueError(f"the published GH++ weighs two tasks, got a Gramian of {len(gramian)}; use GHPlusPlus")
        correlation, _, _ = _correlation(gramian)
        c = correlation[0, 1].clamp(max=0.0)
        delta = torch.atan2(-c, ((1.0 - c) * (1.0 + c)).sqrt())
        alpha, beta = self.lam * delta, (1.0 - self.lam) * delta
        return torch.stack([1.0 + 2.0 * (alpha / 2).sin(), 1.0 - 2.0 * (beta / 2).sin()])

    def _word(self) -> list[str]:
        return ["gh++", "official", *([] if self.lam == 0.5 else [_shown(self.lam)])]


def _shown(value: object) -> str:
    """A number or a word of an option; a whole number without its point."""
    return str(value).removesuffix(".0")


def _check_lambda(lam: object) -> None:
    if isinstance(lam, bool) or not isinstance(lam, (int, float)) or not 0 <= lam <= 1:
        raise ValueError(f"lam must be a number in [0, 1] (or 'adaptive' for the exact GH++), got {lam!r}")


def _power(matrix: Tensor, exponent: float, floor: Tensor | float = 0.0) -> Tensor:
    """Power of a symmetric positive semi-definite matrix, with eigenvalues of at least ``floor``."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=floor).pow(exponent)) @ vectors.T


def _nearest_correlation(matrix: Tensor) -> Tensor:
    """Clip the negative eigenvalues of a symmetric matrix with unit diagonal and restore the diagonal."""
    clipped = _power(matrix, 1.0)
    scale = clipped.diagonal().sqrt()
    return clipped / scale / scale[:, None]
