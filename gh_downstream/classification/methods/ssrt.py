"""Safe self-refinement for transformers."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.hooks import RemovableHandle

from gh_downstream.adaptation import domain_loss, scale_gradient
from gh_downstream.classification.backbones import Backbone
from gh_downstream.classification.methods.base import AdversarialOptions, Losses, Method, together
from gh_downstream.harmonization.checks import check_numbers
from gh_downstream.harmonization.distributed import all_reduce_mean


@dataclass(kw_only=True)
class SSRTOptions(AdversarialOptions):
    r"""Options of :class:`SSRT`; the hidden layers are those of the discriminator and of the classifier alike.

    Attributes:
        refinement: Final weight of the self-refinement.
        perturbation: Final :math:`\alpha`.
        layers: Blocks before which tokens are moved; null for the first, and those at one and two thirds of the depth.
        confidence: Least probability of the most likely class.
        interval: Steps of an interval of safe training; null trains without it.
        levels: The halves, quarters, ... of an interval that are compared: so many times it is divided.
    """

    trade_off: float = 0.1
    hidden_layers: int = 1
    refinement: float = 0.2
    perturbation: float = 0.3
    layers: list[int] | None = None
    confidence: float = 0.4
    interval: int | None = 1000
    levels: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, confidence=">= 0, < 1")
        if self.interval is not None and self.interval < 2**self.levels:
            raise ValueError(f"an interval of {self.interval} steps cannot be halved {self.levels} times (levels)")


class SSRT(Method):
    r"""SSRT (Sun et al., "Safe Self-Refinement for Transformer-based Domain Adaptation", CVPR 2022,
    arXiv 2204.07683).

    A vision transformer with a bottleneck and a discriminator, and *self-refinement*: tokens :math:`x` of a target
    image, before a block drawn from ``layers``, are moved towards those of another one,
    :math:`x + \alpha (x' - x)` (the difference without gradient), and the predictions with and without are
    drawn together by the Kullback-Leibler divergence in a direction that is drawn, on images of a confidence over
    ``confidence``. *Safe training*: where the number of classes that are predicted in a
    batch drops by more than one between two parts of an ``interval`` of steps, the weights of its beginning come back,
    and the refinement begins anew from a strength of 0; its rise takes twice as long if that was needed lately.

    **task**: cross-entropy on the source. **alignment**: the discriminator's cross-entropy through gradient reversal,
    and the self-refinement. Shared: the backbone with the bottleneck.
    """

    Options = SSRTOptions

    def __init__(self, backbone: Backbone, num_classes: int, options: SSRTOptions) -> None:
        super().__init__(backbone, num_classes, options)
        blocks = getattr(backbone.trunk, "blocks", None)
        if blocks is None:
            raise ValueError("ssrt refines the tokens of a vision transformer: choose one as backbone, or vit-digits")
        depth = len(blocks)
        self.layers = (0, depth // 3, 2 * depth // 3) if options.layers is None else tuple(options.layers)
        if not self.layers or not all(0 <= layer < depth for layer in self.layers):
            raise ValueError(f"method_options.ssrt.layers are blocks from 0 to {depth - 1}, got {list(self.layers)}")
        self.discriminator = options.network(backbone.out_features, 1)
        self.guard: CollapseGuard | None = None
        self.snapshot: nn.ModuleList | None = None
        if options.interval is not None:
            self.guard = CollapseGuard(options.interval, options.levels)
            self.snapshot = copy.deepcopy(self._trained).requires_grad_(False)

    def head(self, num_classes: int) -> nn.Module:
        """Return a new classifier of features."""
        return self.options.network(self.backbone.out_features, num_classes)

    @property
    def _trained(self) -> nn.ModuleList:
        return nn.ModuleList([self.backbone, self.classifier, self.discriminator])

    def forward(self, source_images: Tensor, source_labels: Tensor, target_images: Tensor, progress: float) -> Losses:
        rise, options = 1.0, self.options
        if self.guard is not None:
            assert self.snapshot is not None
            if self.guard.at_boundary():
                # Weights of an interval in which the predictions collapsed are given up; others are kept.
                given_up = self.guard.begin_interval()
                source, destination = (self.snapshot, self._trained) if given_up else (self._trained, self.snapshot)
                destination.load_state_dict(source.state_dict())
            rise = self.guard.rise()
        sizes = [len(source_images), len(target_images), len(target_images)]
        layer = self.layers[int(torch.randint(len(self.layers), ()))]
        with _perturbed(self.backbone.trunk, layer, sizes[1], rise * options.perturbation):
            features = self.backbone(torch.cat([source_images, target_images]))
        source_features, target_features, moved_features = features.split(sizes)
        source_logits, target_logits = together(self.classifier, source_features, target_features)
        if self.guard is not None:
            self.guard.note(target_logits)
        weight = rise * options.refinement
        strengths = self.inside(
            {
                "task": {"loss_cls": 1.0},
                "alignment": {"loss_domain": options.strength(progress), "loss_refinement": weight},
            }
        )
        reversed_features = (scale_gradient(x, -strengths["loss_domain"]) for x in (source_features, target_features))
        # Twice the mean over both domains: the published loss is the sum of their means.
        of_domain = 2 * domain_loss(*self.discriminate(*reversed_features))
        # The classifier is not shared, and learns from the refinement by its weight alone.
        factor = strengths["loss_refinement"] / weight if weight else 1.0
        pair = together(self.classifier, *(scale_gradient(x, factor) for x in (target_features, moved_features)))
        refined = refinement_loss(*pair, options.confidence)
        return {
            "task": {"loss_cls": cross_entropy(source_logits, source_labels)},
            "alignment": {"loss_domain": of_domain, "loss_refinement": weight * refined},
        }


def refinement_loss(logits: Tensor, moved: Tensor, confidence: float) -> Tensor:
    """Return the divergence between predictions with and without perturbation, in a direction that is drawn.

    Logits and those with moved tokens are ``[M, K]``. Images whose most likely class has a probability below
    ``confidence``, in the predictions that are the model of the others, do not count.
    """
    model, other = (logits, moved) if torch.rand(()) < 0.5 else (moved, logits)
    wanted, found = model.log_softmax(dim=1), other.log_softmax(dim=1)
    divergence = (wanted.exp() * (wanted - found)).sum(dim=1)
    sure = (wanted.detach().exp().amax(dim=1) > confidence).to(divergence)
    return (divergence * sure).sum() / sure.sum().clamp(min=1)


class CollapseGuard(nn.Module):
    """Notices when a model predicts fewer and fewer classes (SSRT's safe training).

    Args:
        interval: Steps of an interval.
        levels: How many times it is divided in halves to be compared.
    """

    diversity: Tensor
    diversity_before: Tensor
    counters: Tensor

    def __init__(self, interval: int, levels: int) -> None:
        super().__init__()
        self.interval = interval
        self.levels = levels
        # Number of classes that were predicted, at each step of this interval and of the one before.
        self.register_buffer("diversity", torch.zeros(interval))
        self.register_buffer("diversity_before", torch.full((interval,), float("nan")))
        # Steps so far, step at which the rise began, its length, step of the last return (0 before any).
        self.register_buffer("counters", torch.tensor([0, 0, interval, 0]))

    def at_boundary(self) -> bool:
        """Whether the next step is the first one of an interval."""
        return int(self.counters[0]) % self.interval == 0

    def rise(self) -> float:
        """Return the strength of the refinement at this step, in [0, 1]."""
        step, began, length, _ = self.counters.tolist()
        return math.sin(min((step - began) / length, 1.0) * math.pi / 2)

    def note(self, logits: Tensor) -> None:
        """Count the predicted classes of a step, from logits ``[M, K]``; the ranks take the mean of theirs."""
        predicted = logits.detach().argmax(dim=1).bincount(minlength=logits.shape[1])
        count = (predicted > 0).sum().to(self.diversity)
        all_reduce_mean([count])
        self.diversity[self.counters[0] % self.interval] = count
        self.counters[0] += 1

    def begin_interval(self) -> bool:
        """Begin an interval, and say whether the weights of the last one are to be given up."""
        step, _, length, last = self.counters.tolist()
        if step == 0:
            return False
        if self.rise() > 0.1 and self._dropped():
            if step - last <= length:  # so too at the first boundary, as published
                self.counters[2] = 2 * length
            self.counters[1] = self.counters[3] = step
            return True
        self.diversity_before.copy_(self.diversity)
        return False

    def _dropped(self) -> bool:
        def drops(parts: int) -> bool:
            compared = (self.diversity_before.tensor_split(parts)[-1], *self.diversity.tensor_split(parts))
            means = torch.stack([part.mean() for part in compared])
            return bool((means.diff() < -1.0).any())  # not so where there was no interval before

        return any(drops(2**level) for level in range(self.levels + 1))


def _perturbed(trunk: nn.Module, layer: int, count: int, strength: float) -> RemovableHandle:
    """Append, before a block, the last ``count`` images of the batch with moved tokens, inside of a ``with``."""

    def move(block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, *others = arguments
        target = tokens[-count:]
        moved = target + strength * (target.flip(0) - target).detach()
        return torch.cat([tokens, moved]), *others

    return trunk.blocks[layer].register_forward_pre_hook(move)  # type: ignore[index, union-attr]
