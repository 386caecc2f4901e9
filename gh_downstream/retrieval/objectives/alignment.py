"""The terms of the alignment, by name: what pulls the features of two domains together, or holds them in place.

A term works on the features of one kind, images or texts, all normalised and all of the global batch. To pull two
domains together, ``mmd`` or ``coral`` is the first choice; ``domain`` was the weakest in trials on the mini-scenes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from gh_downstream.adaptation import GradientReversal, coral, domain_loss, mmd
from gh_downstream.adaptation.rows import sum_of_rows
from gh_downstream.retrieval.objectives.config import AlignmentTermConfig

if TYPE_CHECKING:
    from gh_downstream.retrieval.encoders import DualEncoder


class SideFeatures(NamedTuple):
    """Normalised features of one kind, images or texts; None for what the batch lacks, or no term needs.

    Attributes:
        source: Features of the labelled source, of shape ``[N, D]``.
        target: Features of the target, of shape ``[K, D]``.
        start: Features of the source by the frozen starting model, of shape ``[N, D]``.
        start_other: Features of the source's other kind by the frozen starting model, of shape ``[M, D]``.
        perturbed_loss: Task loss with features of the perturbed source in the place of ``source``, a scalar.
        distributed: Whether the processes share the rows of what compares all with all, see
            :mod:`~gh_downstream.retrieval.objectives.losses`.
        aligned: What the terms that need a target take for ``source``; None for the same. See
            :func:`~gh_downstream.adaptation.encode_source`.
    """

    source: Tensor
    target: Tensor | None = None
    start: Tensor | None = None
    start_other: Tensor | None = None
    perturbed_loss: Tensor | None = None
    distributed: bool = False
    aligned: Tensor | None = None

    def of(self, needs_target: bool) -> SideFeatures:
        """Return what a term takes, which may need a target."""
        return self if self.aligned is None or not needs_target else self._replace(source=self.aligned)


class MMD(nn.Module):
    """The :func:`mmd` between the features of source and target, without parameters."""

    needs_target = True

    def forward(self, features: SideFeatures) -> Tensor:
        """Return the discrepancy, a scalar."""
        assert features.target is not None
        return mmd(features.source, features.target, distributed=features.distributed)


class CORAL(nn.Module):
    """The distance of :func:`coral` between the features of source and target, without parameters."""

    needs_target = True

    def forward(self, features: SideFeatures) -> Tensor:
        """Return the discrepancy, a scalar."""
        assert features.target is not None
        return coral(features.source, features.target)


class DomainAdversary(nn.Module):
    """Discriminator of three linear layers behind a gradient reversal (Ganin and Lempitsky, arXiv 1409.7495).

    The weakest way to align the domains in trials on the mini-scenes, and the one that differed most between seeds.

    Args:
        in_features: Length ``D`` of a feature vector.
    """

    needs_target = True

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.reversal = GradientReversal()
        hidden = [nn.Linear(in_features, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
        self.discriminator = nn.Sequential(*hidden, nn.Linear(256, 1))

    def forward(self, features: SideFeatures) -> Tensor:
        """Return the domain loss, a scalar; log 2 is a discriminator that cannot tell the domains apart."""
        assert features.target is not None
        return domain_loss(self._logits(features.source), self._logits(features.target))

    def _logits(self, x: Tensor) -> Tensor:
        # The entries of a unit vector are of the order D ** -0.5, too small for layers initialised for entries of 1.
        return self.discriminator(self.reversal(x) * x.shape[1] ** 0.5)


class Distillation(nn.Module):
    r"""Keeps the similarities to the other kind where the starting model had them.

    .. math:: L = \frac{1}{N} \sum_i \mathrm{KL}\big( \mathrm{softmax}(e^{s_0} x^0_i Y_0^T) \,\big\|\,
              \mathrm{softmax}(e^{s_0} x_i Y_0^T) \big)

    with the features :math:`x^0, Y_0` and the logit scale :math:`s_0` of the starting model. The other kind is the
    starting model's on both sides of the divergence, so the loss reaches one tower alone.

    Args:
        logit_scale: Logarithm :math:`s_0`, a scalar; a copy is kept.
    """

    needs_target = False
    logit_scale: Tensor

    def __init__(self, logit_scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("logit_scale", logit_scale.detach().clone())

    def forward(self, features: SideFeatures) -> Tensor:
        """Return the divergence, a scalar of at least 0."""
        assert features.start is not None
        assert features.start_other is not None
        start, others = features.start, self.logit_scale.exp() * features.start_other

        def term(rows: slice, source: Tensor) -> Tensor:
            learnt, known = (log_softmax(x[rows] @ others.T, dim=1) for x in (source, start))
            return kl_div(learnt, known, reduction="sum", log_target=True)

        with torch.autocast(start.device.type, enabled=False):
            return sum_of_rows(term, len(start), len(others), [features.source], features.distributed) / len(start)


class Consistency(nn.Module):
    r"""The task loss once more, on images with noise: the features should be the same.

    .. math:: L = L_\mathrm{task}(x + \sigma \epsilon), \qquad \epsilon \sim \mathcal{N}(0, 1)

    for the preprocessed pixels :math:`x`. It is the second loss of the published retrieval experiment of GH
    (arXiv 2408.00288), with :math:`\sigma = 0.3`; the noisy pixels are not clipped. They go through the image tower in
    a forward pass of their own, the captions do not. The loss reaches the text tower and the logit scale too, which are
    harmonized when ``harmonization.shared`` names them.

    .. note:: It hardly ever conflicts with the task, of which it is a copy. In the first 60 steps on the mini-scenes
        the cosine between the two gradients was 0.99 on average and never below 0.79 (with noise of 1: 0.77, and
        negative in 3 % of the steps), so that GH and GH++ left the plain sum as it was. As a part of the alignment it
        hides the conflicts of the other terms: with ``mmd``, in conflict at half of the steps, none was left. Put it on
        the side of the task by ``harmonization.tasks`` there.

    Args:
        noise: Standard deviation :math:`\sigma` in units of the normalised pixels.
    """

    needs_target = False

    def __init__(self, noise: float = 0.3) -> None:
        super().__init__()
        self.noise = noise

    def perturb(self, x: Tensor) -> Tensor:
        """Return inputs of any shape with Gaussian noise added."""
        return x + self.noise * torch.randn_like(x)

    def forward(self, features: SideFeatures) -> Tensor:
        """Return the task loss of the perturbed source, a scalar."""
        assert features.perturbed_loss is not None
        return features.perturbed_loss


# Each makes a term for one kind of features of an encoder.
ALIGNMENTS: dict[str, Callable[[DualEncoder, AlignmentTermConfig], nn.Module]] = {
    "mmd": lambda encoder, config: MMD(),
    "coral": lambda encoder, config: CORAL(),
    "domain": lambda encoder, config: DomainAdversary(encoder.embed_dim),
    "distillation": lambda encoder, config: Distillation(encoder.logit_scale),
    "consistency": lambda encoder, config: Consistency(0.3 if config.noise is None else config.noise),
}


class Alignment(nn.Module):
    """The terms of the alignment and their weights.

    Args:
        encoder: The encoder as training finds it; ``distillation`` keeps a frozen copy.
        terms: Settings by name of the term, one of :data:`ALIGNMENTS`. Those of weight 0 are left out.

    Attributes:
        sides: The kinds of features that any term aligns, of ``image`` and ``text``, in this order.
        target_sides: Those of which any term needs the target.
        start: The frozen starting model, always in evaluation mode, or None. The state dict has it for a resumed run.

    Raises:
        ValueError: A name is unknown, ``consistency`` is on texts, or another term is given its noise.
    """

    def __init__(self, encoder: DualEncoder, terms: Mapping[str, AlignmentTermConfig]) -> None:
        super().__init__()
        if unknown := sorted(set(terms) - set(ALIGNMENTS)):
            raise ValueError(f"alignment has {', '.join(unknown)}, but its terms are {', '.join(ALIGNMENTS)}")
        self.terms = nn.ModuleDict()
        self.weights: dict[str, float] = {}
        for name, config in terms.items():
            if name == "consistency" and config.side != "image":
                raise ValueError(
                    f"alignment.consistency adds noise to pixels: side has to be image, got {config.side!r}"
                )
            if name != "consistency" and config.noise is not None:
                raise ValueError(f"alignment.{name} takes no noise, which belongs to alignment.consistency")
            for side in config.sides if config.weight else ():
                self.terms[f"{name}_{side}"] = ALIGNMENTS[name](encoder, config)
                self.weights[f"{name}_{side}"] = config.weight
        self.sides = _sides(self.terms)
        self.target_sides = _sides(name for name, term in self.terms.items() if term.needs_target)
        self.start: DualEncoder | None = None
        if any(isinstance(term, Distillation) for term in self.terms.values()):
            self.start = copy.deepcopy(encoder).requires_grad_(False).eval()

    def active_sides(self, target: Collection[str]) -> tuple[str, ...]:
        """The kinds of which terms align the source's features in a batch with these kinds of the target."""
        return _sides(
            name
            for name, term in self.terms.items()
            if not isinstance(term, Consistency) and (not term.needs_target or _side(name) in target)
        )

    def perturbed(self, source: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The source's inputs as the terms perturb them: the kinds that at least one term perturbs."""
        return {
            _side(name): term.perturb(source[_side(name)])
            for name, term in self.terms.items()
            if isinstance(term, Consistency)
        }

    def forward(self, features: Mapping[str, SideFeatures]) -> dict[str, Tensor]:
        """Return the weighted losses, scalars named ``loss_TERM_SIDE``, such as ``loss_mmd_image``.

        Args:
            features: Features by kind, ``image`` and ``text``. A term whose target is not there is left out.
        """
        return {
            f"loss_{name}": self.weights[name] * term(features[_side(name)].of(bool(term.needs_target)))
            for name, term in self.terms.items()
            if not term.needs_target or features[_side(name)].target is not None
        }


def _side(name: str) -> str:
    """The kind of features in the name of a term."""
    return name.rpartition("_")[2]


def _sides(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(map(_side, names))))
