"""Settings of the task loss and of the terms of the alignment; a value out of its range raises ``ValueError``."""

from dataclasses import dataclass

from gh_downstream.harmonization.checks import check_numbers, check_one_of

TASKS = ("contrastive", "sigmoid")
SIDES = ("image", "text")


@dataclass
class TripletConfig:
    """The triplet loss on the hardest negatives, see :func:`~gh_downstream.retrieval.objectives.triplet_loss`.

    Attributes:
        weight: Weight of the loss, at least 0; 0 turns it off.
        margin: Margin of the cosine similarities, above 0.
    """

    weight: float
    margin: float = 0.2

    def __post_init__(self) -> None:
        check_numbers(self, margin="> 0")


@dataclass
class TaskConfig:
    """The loss on labelled pairs.

    Attributes:
        name: ``contrastive`` (CLIP, a softmax over the batch) or ``sigmoid`` (SigLIP; the encoder needs a logit bias).
        max_logit_scale: Largest factor of the cosine similarities, at least 1; the learnt factor is kept between 1 and
            this, or the factor that the encoder comes with if that is larger.
        triplet: A triplet loss that is added to it (``task: {triplet: {weight: 0.5}}``); null adds none.
    """

    name: str = "contrastive"
    max_logit_scale: float = 100.0
    triplet: TripletConfig | None = None

    def __post_init__(self) -> None:
        check_one_of("name", self.name, TASKS)
        check_numbers(self, max_logit_scale=">= 1")


@dataclass
class AlignmentTermConfig:
    """One term of the alignment; which one, is the key it stands under (``alignment: {mmd: {weight: 0.1}}``).

    Attributes:
        weight: Weight of the loss, at least 0; 0 turns the term off.
        side: ``image``, ``text``, or ``both``: the features that are aligned. With ``both`` each kind has a loss of its
            own, of this weight.
        noise: Of ``consistency`` alone, standard deviation of the noise in units of the normalised pixels, above 0;
            null is the published 0.3.
    """

    weight: float
    side: str = "image"
    noise: float | None = None

    def __post_init__(self) -> None:
        check_one_of("side", self.side, (*SIDES, "both"))
        check_numbers(self, noise="> 0")

    @property
    def sides(self) -> tuple[str, ...]:
        """The kinds of features that are aligned, ``image`` before ``text``."""
        return SIDES if self.side == "both" else (self.side,)
