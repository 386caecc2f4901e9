"""The mean teacher of the native engine: the average of ``training.ema``, which labels the target for the student."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gh_downstream.detection.pseudo_labels import class_thresholds, label_figures
from gh_downstream.harmonization.checks import check_numbers
from gh_downstream.training import Callback


@dataclass
class TeacherConfig:
    """A mean teacher: the average of the weights that ``training.ema`` keeps, and that is evaluated.

    It labels an image of the target as it is, and the student learns from these labels on a strong view of it.

    Attributes:
        score_threshold: Detections with a lower score are no labels; nor are those below ``detector.score_threshold``.
        class_thresholds: That of single classes, by their names, such as ``{train: 0.5}``.
        loss_weight: Weight of the losses on pseudo-labels.
        burn_in_steps: Steps without pseudo-labels, on the images of the target as they are.
    """

    score_threshold: float = 0.8
    class_thresholds: dict[str, float] = field(default_factory=dict)
    loss_weight: float = 1.0
    burn_in_steps: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, score_threshold=">= 0, <= 1", class_thresholds=">= 0, <= 1")


class MeanTeacher(Callback):
    """Labels the weak view of the target, ``target_weak_images`` of a batch, where there is one.

    Raises:
        ValueError: A threshold is that of none of the classes.
    """

    def __init__(self, config: TeacherConfig, classes: Sequence[str]) -> None:
        by_class = config.class_thresholds
        self.thresholds = class_thresholds(config.score_threshold, by_class, classes, "teacher.class_thresholds")
        self._scores: list[Tensor] = []

    def on_batch(self, batch: dict[str, Any], average: Any) -> None:
        """Put the labels of the average into the batch, in the place of the view."""
        views = batch.pop("target_weak_images", None)
        labels = [] if views is None else average.pseudo_labels(views, self.thresholds)
        self._scores = [found.pop("scores") for found in labels]
        if labels:
            batch["target_labels"] = labels

    def metrics(self) -> Mapping[str, float]:
        """Return the number of labels for each image of the last batch, and their mean score."""
        return label_figures(self._scores) if self._scores else {}
