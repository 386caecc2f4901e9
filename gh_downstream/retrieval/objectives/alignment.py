"""The terms of the alignment, by name: what pulls the features of two domains together, or holds them in place.

A term works on the features of one kind, images or texts, all normalised and all of the global batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from gh_downstream.adaptation import GradientReversal, coral, domain_loss, mmd
from gh_downstream.retrieval.objectives.config import AlignmentTermConfig

if TYPE_CHECKING:
    from gh_downstream.retrieval.encoders import DualEncoder


class SideFeatures(NamedTuple):
    """Normalised features of one kind, images or texts.

    Attributes:
        source: Features of the labelled source, of shape ``[N, D]``.
        target: Features of the target, of shape ``[K, D]``; None when the batch has none.
        start: Features of the source by the frozen starting model, of shape ``[N, D]``; None unless a term needs them.
        start_other: Features of the source's other kind by the frozen starting model, of shape ``[M, D]``, or None.
    """

    source: Tensor
    target: Tensor | None = None
    start: Tensor | None = None
    start_other: Tensor | None = None


class Discrepancy(nn.Module):
    """A discrepancy between the features of source and target, without parameters.

    Args:
        distance: :func:`~gh_downstream.adaptation.mmd` or :func:`~gh_downstream.adaptation.coral`.
    """

    needs_target = True

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, features: SideFeatures) -> Tensor:
        """Return the discrepancy, a scalar."""
        assert features.target is not None
        return self.distance(features.source, features.target)


class DomainAdversary(nn.Module):
    """Discriminator of three linear layers behind a gradient reversal (Ganin and Lempitsky, arXiv 1409.7495).

    Args:
        in_features: Length ``D`` of a feature vector.
        hidden_features: Width of the two hidden layers.
    """

    needs_target = True

    def __init__(self, in_features: int, hidden_features: int = 256) -> None:
        super().__init__()
        self.reversal = GradientReversal()
        self.discriminator = nn.Sequential(
            nn.Linear(in_features, hidden_features),
            nn.ReLU(),
            nn.Linear(hidden_features, hidden_features),
            nn.ReLU(),
            nn.Linear(hidden_features, 1),
        )

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
        with torch.autocast(features.source.device.type, enabled=False):
            others = self.logit_scale.exp() * features.start_other.T
            learnt, start = (log_softmax(x @ others, dim=1) for x in (features.source, features.start))
            return kl_div(learnt, start, reduction="batchmean", log_target=True)


# Each makes a term for one kind of features of an encoder.
ALIGNMENTS: dict[str, Callable[[DualEncoder], nn.Module]] = {
    "mmd": lambda encoder: Discrepancy(mmd),
    "coral": lambda encoder: Discrepancy(coral),
    "domain": lambda encoder: DomainAdversary(encoder.embed_dim),
    "distillation": lambda encoder: Distillation(encoder.logit_scale),
}


class Alignment(nn.Module):
    """The terms of the alignment and their weights.

    Args:
        encoder: The encoder as training finds it; ``distillation`` keeps a frozen copy.
        terms: Settings by name of the term, one of :data:`ALIGNMENTS`. Those of weight 0 are left out.

    Attributes:
        sides: The kinds of features that any term aligns, of ``image`` and ``text``, in this order.
        target_sides: Those of which any term needs the target.
        start: The frozen starting model, in evaluation mode always, when a term needs it. It is in the state dict, so
            that a resumed run goes on with the same one.

    Raises:
        ValueError: A name is unknown.
    """

    def __init__(self, encoder: DualEncoder, terms: Mapping[str, AlignmentTermConfig]) -> None:
        super().__init__()
        unknown = sorted(set(terms) - set(ALIGNMENTS))
        if unknown:
            raise ValueError(f"alignment has {', '.join(unknown)}, but its terms are {', '.join(ALIGNMENTS)}")
        self.terms = nn.ModuleDict()
        self.weights: dict[str, float] = {}
        sides, target_sides = set(), set()
        for name, config in terms.items():
            for side in config.sides if config.weight else ():
                term = ALIGNMENTS[name](encoder)
                self.terms[f"{name}_{side}"] = term
                self.weights[f"{name}_{side}"] = config.weight
                sides.add(side)
                if term.needs_target:
                    target_sides.add(side)
        self.sides, self.target_sides = tuple(sorted(sides)), tuple(sorted(target_sides))
        self.start: DualEncoder | None = None
        if any(isinstance(term, Distillation) for term in self.terms.values()):
            self.start = copy.deepcopy(encoder).requires_grad_(False).eval()

    def active_sides(self, target: Collection[str]) -> tuple[str, ...]:
        """The kinds of features that terms align in a batch with these kinds of the target."""
        always = {name.rpartition("_")[2] for name, term in self.terms.items() if not term.needs_target}
        return tuple(side for side in self.sides if side in always or side in target)

    def train(self, mode: bool = True) -> Alignment:
        """Set the mode of everything but the starting model."""
        super().train(mode)
        if self.start is not None:
            self.start.eval()
        return self

    def forward(self, features: Mapping[str, SideFeatures]) -> dict[str, Tensor]:
        """Return the weighted losses, scalars named ``loss_TERM_SIDE``, such as ``loss_mmd_image``.

        Args:
            features: Features by kind, ``image`` and ``text``. A term whose target is not there is left out.
        """
        losses = {}
        for name, term in self.terms.items():
            of_side = features[name.rpartition("_")[2]]
            if of_side.target is not None or not term.needs_target:
                losses[f"loss_{name}"] = self.weights[name] * term(of_side)
        return losses
