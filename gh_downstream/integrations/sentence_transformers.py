"""Two losses of a sentence-transformers training, harmonized at the embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gh_downstream.harmonization import Report, Weighting, fork
from gh_downstream.harmonization.checks import check_at_least
from gh_downstream.harmonization.words import checked_weighting
from gh_downstream.integrations.report_log import ReportLog

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class HarmonizedLoss(nn.Module):
    """A task loss and an alignment loss on the embeddings, their gradients harmonized where they meet.

    ::

        loss = HarmonizedLoss(
            model,
            task=MultipleNegativesRankingLoss(model),
            alignment=lambda columns: mmd(columns[0], columns[2]),
            task_columns=2,  # anchor, positive; the third column has texts of the target
        )
        SentenceTransformerTrainer(model, args, train_dataset=dataset, loss=loss).train()

    Each column of the data set is embedded once. The trainer sums the losses and logs each: ``gh/loss/task`` and
    ``gh/loss/alignment``, followed by ``/NAME`` where a loss returns several by name. The weighting
    :class:`~gh_downstream.Sum` is the plain training to rounding.

    .. warning:: This measures the conflict at the **features**: read the warning of :func:`~gh_downstream.fork` (in
        trials of dual encoders the cosine had the sign of that at the parameters in 52 to 70 % of the steps). For the
        latter mix :class:`~gh_downstream.integrations.transformers.GradientHarmonizationMixin` into the trainer.

    With gradient accumulation each micro-batch is harmonized by itself. In several processes the losses are those of
    each process's own batch, the weights those of all: let the task gather (``gather_across_devices=True``), and a
    discrepancy gather its embeddings with gradient.

    Args:
        model: The model that is trained.
        task: A loss of sentence-transformers that works on embeddings (``compute_loss_from_embeddings``), such as
            ``MultipleNegativesRankingLoss``, ``CoSENTLoss`` or ``TripletLoss``.
        alignment: Another such loss, or a function of the embeddings of all columns, a list of tensors of shape
            ``[B, D]``, that returns a scalar. Fixed weights belong in it. Where it is a module with parameters, the
            trainer trains them, without averaging their gradients over processes.
        weighting: A word such as ``"gh++:adaptive"``, or any weighting.
        task_columns: How many of the first columns the task gets; all by default.
        on_report: Called with a :class:`~gh_downstream.harmonization.Report` in each backward pass. A log line every
            100 by default.

    Raises:
        ValueError: A loss embeds the texts itself, as those with a gradient cache do, ``task_columns`` is below 1, or
            the word is no weighting.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        task: nn.Module,
        alignment: nn.Module | Callable[[list[Tensor]], Tensor],
        weighting: Weighting | str = "gh++",
        task_columns: int | None = None,
        on_report: Callable[[Report], None] | None = None,
    ) -> None:
        super().__init__()
        check_at_least("task_columns", task_columns, 1)
        _check_embeddings("task", task)
        if hasattr(alignment, "model"):
            _check_embeddings("alignment", alignment)
        self.model = model
        self.task: Any = task
        self.alignment: Any = alignment
        self.weighting = checked_weighting(weighting, 2)
        self.task_columns = task_columns
        self.on_report = ReportLog() if on_report is None else on_report
        self._checked = False

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """Return the losses by name, of what the model takes for each column and what the task takes as labels.

        Raises:
            ValueError: The losses do not both depend on the embeddings of a column.
        """
        embeddings = [self.model(features)["sentence_embedding"] for features in sentence_features]
        branches = fork(embeddings, self.weighting, on_report=self.on_report)
        aligned, for_task = list(branches[0]), list(branches[1][: self.task_columns])
        task = _named("gh/loss/task", self.task.compute_loss_from_embeddings(for_task, labels))
        of_library = getattr(self.alignment, "compute_loss_from_embeddings", None)
        alignment = of_library(aligned, labels) if of_library is not None else self.alignment(aligned)
        alignment = _named("gh/loss/alignment", alignment)
        if torch.is_grad_enabled() and not self._checked:
            if not _columns(task, for_task) & _columns(alignment, aligned):
                raise ValueError(
                    "task and alignment share no column, so there is nothing to harmonize: the alignment has to depend "
                    "on the embeddings of a column of the task, and the model to be trained"
                )
            self._checked = True
        return task | alignment


def _named(side: str, loss: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{side}/{name}": value for name, value in loss.items()} if isinstance(loss, Mapping) else {side: loss}


def _columns(losses: Mapping[str, Tensor], embeddings: list[Tensor]) -> set[int]:
    """The columns that the losses depend on."""
    total: Any = sum(losses.values())
    if not total.requires_grad or not embeddings[0].requires_grad:
        return set()
    gradients = torch.autograd.grad(total, embeddings, retain_graph=True, allow_unused=True)
    return {k for k, gradient in enumerate(gradients) if gradient is not None}


def _check_embeddings(side: str, loss: Any) -> None:
    name = type(loss).__name__
    if getattr(loss, "uses_gradient_cache", False) or not hasattr(loss, "compute_loss_from_embeddings"):
        raise ValueError(
            f"the {side} loss {name} embeds the texts itself, as the Cached losses do (GradCache), so that the two "
            "losses share no embeddings: take one with compute_loss_from_embeddings, such as "
            "MultipleNegativesRankingLoss"
        )
