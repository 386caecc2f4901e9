"""A dual encoder with its losses: a batch of source pairs and of the unlabelled target in, two sides of losses out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gh_downstream.adaptation import check_whole_source, encode_source
from gh_downstream.harmonization import Weighting, fork, in_chunks
from gh_downstream.harmonization.distributed import world_size
from gh_downstream.retrieval.objectives.alignment import Alignment, SideFeatures
from gh_downstream.retrieval.objectives.config import SIDES, AlignmentTermConfig, TaskConfig
from gh_downstream.retrieval.objectives.gather import gather_with_gradient
from gh_downstream.retrieval.objectives.losses import PositivePairs, contrastive_loss, sigmoid_loss, triplet_loss
from gh_downstream.training import AdaptedModel

if TYPE_CHECKING:
    from gh_downstream.retrieval.encoders import DualEncoder


class RetrievalModel(AdaptedModel):
    """A dual encoder that learns from pairs of the source while its features are aligned with the target's.

    Source and target go through a tower one after the other, so that harmonizing the two sides costs one more backward
    pass through the source alone. In several processes every rank gathers the features of the global batch with
    gradient, and computes its own rows of the losses that compare all with all: average the gradients over the ranks,
    as a :class:`~gh_downstream.Harmonizer` and ``DistributedDataParallel`` do, and the losses where they are shown.
    Every rank needs as many images and texts as the others.

    Args:
        encoder: The dual encoder, with the weights that training starts from. A logit bias is frozen under the
            contrastive loss, which does not depend on it.
        task: The loss on the source pairs.
        alignment: Terms of the alignment by name, see :data:`~gh_downstream.retrieval.objectives.ALIGNMENTS`. Without
            any (of a weight above 0), training is on the source alone. The first choice is ``mmd`` or ``coral``.
        micro_batch: Encode in chunks of so many images or texts, and again in the backward pass, once for both sides
            (:func:`~gh_downstream.harmonization.in_chunks`): the activations in memory are those of a chunk, the losses
            and gradients those of the whole batch. None encodes at once. A tower with batch normalization would see
            chunks for batches.
        source_share: Share of the source's images and captions that the gradient of the terms between the domains
            reaches, in each process. Below 1 it is another objective, see
            :func:`~gh_downstream.adaptation.encode_source`; with 0 the target alone is aligned with the source.
        harmonize_features: A weighting to harmonize the gradients of alignment and task with, at the normalised
            features that are aligned, by :func:`~gh_downstream.fork`; train on the plain sum of the losses then. The
            features of noisy images take part as those of the target do: as the alignment's alone. With None that is
            the plain sum, or harmonized by a :class:`~gh_downstream.Harmonizer`.

    Raises:
        ValueError: A term is unknown, ``micro_batch`` is below 1, the sigmoid loss is asked of an encoder without logit
            bias, or features are to be harmonized that nothing aligns, or of which ``source_share`` leaves some out.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        task: TaskConfig | None = None,
        alignment: Mapping[str, AlignmentTermConfig] | None = None,
        micro_batch: int | None = None,
        source_share: float = 1.0,
        harmonize_features: Weighting | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.task = task or TaskConfig()
        self.alignment = Alignment(encoder, alignment or {})
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1, or null to encode at once, got {micro_batch}")
        if self.task.name == "sigmoid" and encoder.logit_bias is None:
            raise ValueError("task.name=sigmoid needs an encoder with a logit bias (SigLIP), which this one has not")
        if harmonize_features is not None and not self.alignment.sides:
            raise ValueError(
                "harmonizing at the features needs features that both sides share, but there is no alignment: add a "
                "term, such as alignment={mmd: {weight: 0.1}}, or set harmonization.weighting=none"
            )
        if harmonize_features is not None:
            check_whole_source(source_share)
        if self.task.name == "contrastive" and encoder.logit_bias is not None:
            # A softmax does not depend on it, and DistributedDataParallel refuses parameters without gradient.
            encoder.logit_bias.requires_grad_(False)
        # SigLIP comes with factors above CLIP's limit, and with a bias that was trained beside them.
        self._log_ceiling = max(math.log(self.task.max_logit_scale), encoder.logit_scale.item())
        self.micro_batch = micro_batch
        self.source_share = source_share
        self.harmonize_features = harmonize_features

    @property
    def shared(self) -> list[str]:  # type: ignore[override]
        """Names of the towers that the task and the alignment share, for a Harmonizer's ``shared``."""
        return [f"encoder.{side}" for side in self.alignment.sides]

    @property
    def figures(self) -> dict[str, Tensor]:
        """What a line of metrics shows of the model: the factor of the similarities, and their bias."""
        scale, bias = self.encoder.logit_scale.detach(), self.encoder.logit_bias
        figures = {"logit_scale": scale.exp().clamp(1, math.exp(self._log_ceiling))}
        return figures if bias is None else figures | {"logit_bias": bias.detach()}

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the factor of the similarities between 1 and ``task.max_logit_scale``, or what it came with if larger.

        :meth:`forward` calls it in training, before the factor is used; after the last step it is the caller's to call.
        """
        self.encoder.logit_scale.clamp_(0, self._log_ceiling)

    def forward(
        self,
        source_images: Tensor,
        source_tokens: Tensor,
        source_groups: Tensor,
        source_text_groups: Tensor,
        target_images: Tensor | None = None,
        target_tokens: Tensor | None = None,
    ) -> dict[str, dict[str, Tensor]]:
        """Return the losses of a batch.

        Args:
            source_images: Preprocessed images of shape ``[N, 3, H, W]``.
            source_tokens: Tokens of the captions, int64 of shape ``[M, L]``.
            source_groups: Id of each image, int64 of shape ``[N]``, or ids of what it belongs to, ``[N, K]``.
            source_text_groups: Id of what each caption belongs to, int64 of shape ``[M]``; see
                :func:`~gh_downstream.retrieval.objectives.positive_pairs`.
            target_images: Images of the target, ``[K, 3, H, W]``; what no term aligns is not encoded.
            target_tokens: Captions of the target, ``[K', L]``, which need not belong to its images.

        Returns:
            ``{"task": {name: loss}, "alignment": {name: loss}}``, scalars times their weights; without anything to
            align only ``"task"``.

        Raises:
            ValueError: There are not as many ids as images and captions, a loss of the alignment needs no gradient,
                because the tower of its features is frozen, or the features to be harmonized are none that both sides
                share, or need none.
        """
        for name, rows, groups in (
            ("source_groups", source_images, source_groups),
            ("source_text_groups", source_tokens, source_text_groups),
        ):
            if len(groups) != len(rows):
                raise ValueError(f"{name} takes {len(rows)} ids, got a tensor of shape {list(groups.shape)}")
        if self.training:
            self.clamp_logit_scale()
        inputs = {"image": source_images, "text": source_tokens}
        target_inputs = {"image": target_images, "text": target_tokens}
        of_target = {side: x for side in self.alignment.target_sides if (x := target_inputs[side]) is not None}
        shares = dict.fromkeys(of_target, self.source_share)
        source, in_part = self._encode(self.encoder, inputs, shares)
        target, _ = self._encode(self.encoder, of_target)
        perturbed, _ = self._encode(self.encoder, self.alignment.perturbed(inputs))
        start: dict[str, Tensor] = {}
        if self.alignment.start is not None:
            with torch.no_grad():
                start, _ = self._encode(self.alignment.start, inputs)
        for_task = source
        sides = self.alignment.active_sides(target)
        if self.harmonize_features is not None and (sides or perturbed):
            shared = {side: source[side] for side in sides}
            self._check_shared(shared, perturbed)
            (aligned_source, target, perturbed), (task_source, _, _) = fork(
                (shared, target, perturbed), self.harmonize_features, on_report=self.measurements.add
            )
            source, for_task = source | aligned_source, source | task_source
        positives = PositivePairs(gather_with_gradient(source_groups), gather_with_gradient(source_text_groups))
        losses = {"task": self._task_losses(for_task, positives)}
        of_perturbed = {
            side: torch.stack(list(self._task_losses(source | {side: features}, positives).values())).sum()
            for side, features in perturbed.items()
        }
        aligned = self.alignment(
            {
                side: SideFeatures(
                    source[side],
                    target.get(side),
                    start.get(side),
                    start.get(other),
                    of_perturbed.get(side),
                    self._shares_rows,
                    in_part.get(side),
                )
                for side, other in zip(SIDES, reversed(SIDES), strict=True)
            }
        )
        idle = [name for name, loss in aligned.items() if not loss.requires_grad]
        if idle and self.training and torch.is_grad_enabled():
            raise ValueError(
                f"{idle[0]} depends on nothing that is trained: its features are of a tower that is frozen; change "
                "freeze or lora, or align other features"
            )
        return losses | ({"alignment": aligned} if aligned else {})

    def _encode(
        self, encoder: DualEncoder, inputs: Mapping[str, Tensor], shares: Mapping[str, float] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Normalised features of the global batch by kind; and those that only a share of the rows sends on."""
        encoders = {"image": encoder.encode_image, "text": encoder.encode_text}
        features, in_part = {}, {}
        for side, x in inputs.items():
            encode = encoders[side]
            if self.micro_batch is not None:
                encode = partial(in_chunks, encode, size=self.micro_batch)
            raw, raw_in_part = encode_source(encode, x, (shares or {}).get(side, 1.0))
            features[side] = _gathered(raw)
            if raw_in_part is not raw:
                in_part[side] = _gathered(raw_in_part)
        return features, in_part

    def _check_shared(self, shared: Mapping[str, Tensor], perturbed: Mapping[str, Tensor]) -> None:
        """Check that there are features that both sides share, and train."""
        if alone := sorted(perturbed.keys() - shared.keys()):
            raise ValueError(
                f"harmonizing at the features needs {alone[0]} features that both sides share, but consistency encodes "
                "its noisy images by themselves: add a term that aligns image features, such as "
                "alignment={mmd: {weight: 0.1}}, or set harmonization.measure=parameters"
            )
        if not any(features.requires_grad for features in shared.values()):
            raise ValueError(
                "harmonizing at the features needs features that both sides share and train, but the alignment is on "
                f"{' and '.join(shared)} features, whose tower is frozen: train {' or '.join(self.shared)}, "
                "align other features, or set harmonization.weighting=none"
            )

    @property
    def _shares_rows(self) -> bool:
        # The fork measures at the gathered features, where a share of the rows is not the whole gradient.
        return world_size() > 1 and self.harmonize_features is None

    def _task_losses(self, source: Mapping[str, Tensor], positives: PositivePairs) -> dict[str, Tensor]:
        compared, shared = (source["image"], source["text"], positives), self._shares_rows
        scale, bias = self.encoder.logit_scale, self.encoder.logit_bias
        if self.task.name == "sigmoid":
            assert bias is not None
            losses = {"loss_sigmoid": sigmoid_loss(*compared, scale, bias, distributed=shared)}
        else:
            losses = {"loss_contrastive": contrastive_loss(*compared, scale, distributed=shared)}
        if (triplet := self.task.triplet) is not None and triplet.weight:
            losses["loss_triplet"] = triplet.weight * triplet_loss(*compared, triplet.margin, distributed=shared)
        return losses


def _gathered(raw: Tensor) -> Tensor:
    """Features of the global batch, normalised in float32 or wider."""
    return gather_with_gradient(normalize(raw.to(torch.promote_types(raw.dtype, torch.float32)), dim=1))
