"""A second loss in ``open_clip_train`` 3.x, harmonized with its own at the features."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gh_downstream.harmonization import Report, Weighting, fork
from gh_downstream.harmonization.checks import check_one_of
from gh_downstream.harmonization.words import checked_weighting
from gh_downstream.integrations.report_log import ReportLog

_SIDES = {"both": ("image", "text"), "image": ("image",), "text": ("text",)}


class HarmonizedClipLoss(nn.Module):
    """The loss of open_clip and a second one on the features, their gradients harmonized where they meet.

    Called as open_clip's losses are, it returns their entries and ``alignment_loss``, which ``open_clip_train`` sums
    and logs each by its name. With ``--accum-freq`` both see the features of the whole batch, and the gradient of the
    towers is that of the whole batch. The weighting :class:`~gh_downstream.Sum` is the plain training to rounding.

    .. warning:: This measures the conflict at the **features**, as the loss never sees the model: read the warning of
        :func:`~gh_downstream.fork` (in trials of dual encoders the cosine had the sign of that at the parameters in 52
        to 70 % of the steps). For the latter take ``tools/train_retrieval.py`` or the Trainer of transformers.

    In several processes the alignment gets the features of its own; a discrepancy of the whole batch has to gather them
    with gradient.

    Args:
        task: What ``open_clip.create_loss(args)`` made, of CLIP or SigLIP.
        alignment: Returns a scalar for the normalised features that ``on`` names, each of shape ``[N, D]``:
            ``alignment(images, texts)``, or ``alignment(images)``. Fixed weights belong in it. It has no parameters,
            which open_clip's optimizer would not train.
        weighting: A word such as ``"gh++:adaptive"``, or any weighting.
        on: ``both``, ``image`` or ``text``: the features that it aligns. The tower of the others is not harmonized.
        on_report: Called with a :class:`~gh_downstream.harmonization.Report` in each backward pass (with
            ``--accum-freq N``, ``N`` equal ones a step). A log line every 100 by default.

    Raises:
        ValueError: ``on`` or ``weighting`` is another word, the alignment has parameters to train, the loss is CoCa's,
            or it would not gather the features of several processes with gradient.
    """

    def __init__(
        self,
        task: nn.Module,
        alignment: Callable[..., Tensor],
        weighting: Weighting | str = "gh++",
        on: Literal["both", "image", "text"] = "both",
        on_report: Callable[[Report], None] | None = None,
    ) -> None:
        super().__init__()
        check_one_of("on", on, _SIDES)
        if isinstance(alignment, nn.Module) and any(p.requires_grad for p in alignment.parameters()):
            raise ValueError(
                f"the alignment {type(alignment).__name__} has parameters, which open_clip_train does not train: train "
                "a discriminator with tools/train_retrieval.py"
            )
        if hasattr(task, "caption_loss"):
            raise ValueError(
                "CoCa's caption loss does not go through the features that are harmonized: take a CLIP or SigLIP model"
            )
        if getattr(task, "world_size", 1) > 1 and not getattr(task, "gather_with_grad", True):
            raise ValueError(
                "the contrastive loss of several processes has another scale beside the alignment without the "
                "gradient of the gathered features: give open_clip_train --local-loss --gather-with-grad"
            )
        self.task = task
        self.alignment = alignment
        self.weighting = checked_weighting(weighting, 2)
        self.sides = _SIDES[on]
        self.on_report = ReportLog() if on_report is None else on_report

    def forward(self, image_features: Tensor, text_features: Tensor, output_dict: bool = False, **others: Any) -> Any:
        """Return the sum of the losses, or with ``output_dict`` the losses by name.

        Args:
            image_features: Normalised features of shape ``[N, D]``, as ``text_features``.
            **others: What else open_clip's loss takes, such as ``logit_scale``.

        Raises:
            ValueError: The alignment does not depend on the features.
        """
        features = {"image": image_features, "text": text_features}
        shared = {side: features[side] for side in self.sides}
        aligned, for_task = fork(shared, self.weighting, on_report=self.on_report)
        image, text = (for_task.get(side, features[side]) for side in features)
        losses = self.task(image_features=image, text_features=text, output_dict=True, **others)
        alignment = self.alignment(*aligned.values())
        if torch.is_grad_enabled() and not alignment.requires_grad:
            raise ValueError(
                f"the alignment does not depend on the {' and '.join(self.sides)} features, or detaches them, or "
                "their tower is locked: there is nothing to harmonize"
            )
        losses = losses | {"alignment_loss": alignment}
        return losses if output_dict else sum(losses.values())


def train(args: Sequence[str], alignment: Callable[..., Tensor], **settings: Any) -> Any:
    """Run ``open_clip_train.main`` with a second loss.

    ::

        if __name__ == "__main__":
            train(sys.argv[1:], alignment=lambda images, texts: 0.1 * mmd(images, texts), weighting="gh++")

    started as ``open_clip_train.main`` is, with the same arguments.

    Args:
        args: The command line of ``open_clip_train``.
        alignment: As of :class:`HarmonizedClipLoss`, and so are ``settings``.

    Raises:
        ImportError: There is no ``open_clip_train``, or it is not the one of open_clip 3.
        ValueError: As :class:`HarmonizedClipLoss`.
    """
    try:
        from open_clip_train import main as library

        create = library.create_loss
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"open_clip_train is incomplete or of another version ({error}): pip install "
            "'open_clip_torch[training]>=3,<4'"
        ) from error
    library.create_loss = lambda parsed: HarmonizedClipLoss(create(parsed), alignment, **settings)
    try:
        return library.main(list(args))
    finally:
        library.create_loss = create
