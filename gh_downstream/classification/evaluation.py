"""Accuracy of a classifier, overall and by class."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

try:
    from sklearn.metrics import confusion_matrix
except ImportError as error:
    message = "evaluating classifiers needs scikit-learn: pip install 'gh_downstream[classification]'"
    raise ImportError(message) from error

from gh_downstream.reporting import Cell, ResultStore, Table

METRICS = ("accuracy", "mean_class_accuracy")
"""Metrics of a data set, in percent."""


@dataclass(frozen=True)
class ClassificationResult:
    """The accuracy on one data set.

    Attributes:
        dataset: Name of the data set.
        num_images: Number of images.
        accuracy: Share of the images whose most likely class is theirs, in percent.
        class_accuracy: The same among the images of each class that has any, by its name.
    """

    dataset: str
    num_images: int
    accuracy: float
    class_accuracy: Mapping[str, float]

    @property
    def mean_class_accuracy(self) -> float:
        """Mean of the accuracies of the classes, in percent: what VisDA-2017 is measured by."""
        return statistics.fmean(self.class_accuracy.values())

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "dataset": self.dataset,
            "num_images": self.num_images,
            "accuracy": self.accuracy,
            "mean_class_accuracy": self.mean_class_accuracy,
            "class_accuracy": dict(self.class_accuracy),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ClassificationResult:
        """Return what :meth:`as_dict` was called on."""
        return cls(**{key: content[key] for key in ("dataset", "num_images", "accuracy", "class_accuracy")})


def evaluate_predictions(
    dataset: str, labels: Sequence[int], predictions: Sequence[int], classes: Sequence[str]
) -> ClassificationResult:
    """Measure predictions.

    Args:
        dataset: Name of the data set.
        labels: Class of each image.
        predictions: Predicted class of each image.
        classes: Names of the classes.

    Raises:
        ValueError: There is no image, or there are not as many predictions as labels.
    """
    if not labels or len(labels) != len(predictions):
        raise ValueError(f"{dataset}: {len(predictions)} predictions for {len(labels)} images")
    counts = confusion_matrix(labels, predictions, labels=range(len(classes)))
    right, totals = counts.diagonal(), counts.sum(axis=1)
    by_class = {name: 100.0 * float(right[k] / totals[k]) for k, name in enumerate(classes) if totals[k]}
    return ClassificationResult(dataset, len(labels), 100.0 * float(right.sum() / totals.sum()), by_class)


def results_table(results: Mapping[str, ClassificationResult], *, config_hash: str, title: str) -> Table:
    """Return a table with a row for each validation set.

    Args:
        results: Results by the name of the validation set.
        config_hash: Names the configuration in the header.
        title: Title of the table.
    """
    rows: list[list[Cell]] = []
    for name, result in results.items():
        worst = min(result.class_accuracy, key=lambda key: result.class_accuracy[key])
        lowest = f"{worst} ({result.class_accuracy[worst]:.1f})"
        rows.append([name, result.accuracy, result.mean_class_accuracy, lowest, result.num_images])
    return Table(
        title,
        ["data set", "accuracy", "class mean", "lowest class", "images"],
        rows,
        [f"configuration: {config_hash}", "accuracy in percent; class mean: mean of the accuracies of the classes"],
    )


def _result_tables(run: str, results: Mapping[str, ClassificationResult], configuration: str) -> list[Table]:
    return [results_table(results, config_hash=configuration, title=f"Accuracy of {run}")]


RESULTS = ResultStore(ClassificationResult.from_dict, _result_tables)
"""The results in the output folder of a run."""
