"""Average precision of detections, by the COCO convention, and its table."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from gh_downstream.detection.data.records import DetectionDataset
from gh_downstream.files import write_atomically
from gh_downstream.reporting import Cell, ResultStore, Spread, Table, comparable_runs

MAX_DETECTIONS = 100
"""Detections of one image and class that count, those of the highest scores; COCO's largest setting."""


class Detection(TypedDict):
    """One detected object.

    Keys:
        image_id: The image's id in the data set.
        category_id: Index into the data set's classes, from 0.
        bbox: ``[x, y, width, height]`` in pixels of the original image.
        score: Confidence from 0 to 1.
    """

    image_id: int | str
    category_id: int
    bbox: list[float]
    score: float


@dataclass(frozen=True)
class APResult:
    """Average precision on one data set, in percent from 0 to 100.

    Args:
        dataset: Name of the data set.
        fog_density: Its fog density in 1/m; ``None`` without fog.
        num_images: Number of evaluated images, with and without objects.
        num_boxes: Number of ground-truth boxes, without crowd regions.
        ap: Mean over classes and over the IoU thresholds 0.50, 0.55, …, 0.95.
        ap50: Mean over classes at IoU 0.50.
        ap75: Mean over classes at IoU 0.75.
        ap50_per_class: AP at IoU 0.50 of each class; not a number for a class without ground truth, which the means
            leave out.
    """

    dataset: str
    fog_density: float | None
    num_images: int
    num_boxes: int
    ap: float
    ap50: float
    ap75: float
    ap50_per_class: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON, ``null`` for not a number."""
        per_class = {name: None if math.isnan(ap) else ap for name, ap in self.ap50_per_class.items()}
        return {**dataclasses.asdict(self), "ap50_per_class": per_class}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> APResult:
        """Return the result that :meth:`as_dict` gave.

        Raises:
            ValueError: A key is missing or unknown.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if wrong := names ^ set(values):
            raise ValueError(f"not an AP result: missing or unknown keys {sorted(wrong)}")
        per_class = {name: math.nan if ap is None else ap for name, ap in values["ap50_per_class"].items()}
        return cls(**{**values, "ap50_per_class": per_class})


def evaluate_detections(dataset: DetectionDataset, detections: Sequence[Detection]) -> APResult:
    """Compute the average precision of detections on a data set.

    The COCO convention (pycocotools): precision interpolated at 101 recalls, at most 100 detections for each image and
    class, crowd regions ignored. Every image of the data set counts, with or without objects or detections.

    Detections may come in any order; without any, the average precision is 0.

    Raises:
        ValueError: The data set has no ground-truth box, or a detection does not fit it, is not finite, or has a box of
            negative size.
        ImportError: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        message = "evaluating detections needs pycocotools: pip install 'gh_downstream[detection]'"
        raise ImportError(message) from error

    if dataset.num_boxes == 0:
        raise ValueError(f"data set {dataset.name!r} has no ground-truth box: there is no AP without labels")
    _check_detections(dataset, detections)
    results = [{**detection, "category_id": detection["category_id"] + 1} for detection in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset.to_coco()
        truth.createIndex()
        found = truth.loadRes(results) if results else COCO()
        evaluation = COCOeval(truth, found, iouType="bbox")
        evaluation.params.areaRng = evaluation.params.areaRng[:1]  # All sizes.
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    # [thresholds, recalls, classes, sizes, limits] -> [thresholds, classes]; -1 where a class has no ground truth.
    precision = evaluation.eval["precision"][..., 0, 0]
    ap = np.where((precision < 0).any(axis=1), np.nan, 100 * precision.mean(axis=1))
    at_50, at_75 = (int(np.argmin(abs(evaluation.params.iouThrs - iou))) for iou in (0.50, 0.75))
    return APResult(
        dataset=dataset.name,
        fog_density=dataset.fog_density,
        num_images=len(dataset),
        num_boxes=dataset.num_boxes,
        ap=float(np.nanmean(ap)),
        ap50=float(np.nanmean(ap[at_50])),
        ap75=float(np.nanmean(ap[at_75])),
        ap50_per_class=dict(zip(dataset.classes, ap[at_50].tolist(), strict=True)),
    )


def detections_of(image_id: int | str, boxes: Any, categories: Any, scores: Any) -> list[Detection]:
    """The detections on an image from tensors: boxes ``[n, 4]`` as x1, y1, x2, y2, categories and scores ``[n]``."""
    corners, sizes = boxes[:, :2].tolist(), (boxes[:, 2:] - boxes[:, :2]).tolist()
    return [
        Detection(image_id=image_id, category_id=category, bbox=[*corner, *size], score=score)
        for corner, size, category, score in zip(corners, sizes, categories.tolist(), scores.tolist(), strict=True)
    ]


def _check_detections(dataset: DetectionDataset, detections: Sequence[Detection]) -> None:
    image_ids = {record["image_id"] for record in dataset.records}
    classes = len(dataset.classes)
    for index, detection in enumerate(detections):
        category, box, score = detection["category_id"], detection["bbox"], detection["score"]
        fault = None
        if detection["image_id"] not in image_ids:
            fault = f"image {detection['image_id']!r} is not in the data set"
        elif not 0 <= category < classes:
            fault = f"category_id {category} is not an index into the {classes} classes (from 0)"
        elif len(box) != 4 or not all(map(math.isfinite, box)):
            fault = f"the box {box} is not four finite numbers [x, y, width, height]"
        elif min(box[2:]) < 0:
            fault = f"the box {box} has a negative size; boxes are [x, y, width, height]"
        elif not math.isfinite(score):
            fault = f"the score {score} is not finite"
        if fault:
            raise ValueError(f"detection {index} on data set {dataset.name!r}: {fault}")


def ap_table(
    rows: Mapping[str, APResult | Sequence[APResult]], *, config_hash: str, title: str = "Average precision"
) -> Table:
    """Compare several models on one data set: the AP50 of each class, then mAP50, AP75 and AP.

    Args:
        rows: Results by the name of the model or method; several results (seeds) of one are given as a sequence, and
            print as mean ± sample standard deviation.
        config_hash: Hash of the configuration that the results come from.
        title: Title of the table.

    Raises:
        ValueError: There is no result, or two results are of different data sets, fog densities, image or box counts.
    """
    runs = comparable_runs(rows, APResult, "AP table", _identity, _describe)
    first = next(iter(runs.values()))[0]
    header = [
        f"data set: {_describe(first)}",
        f"configuration: {config_hash}",
        "percent, COCO convention: 101-point AP, at most 100 detections for each image and class; class columns and "
        "mAP50 at IoU 0.50, AP75 at 0.75, AP over 0.50:0.95; means over the classes with ground truth",
    ]
    counts = {len(results) for results in runs.values()}
    columns = ["model", *first.ap50_per_class, "mAP50", "AP75", "AP"]
    if counts != {1}:
        header.append("± is the sample standard deviation over runs with different seeds")
        columns.insert(1, "runs")
    table_rows: list[list[Cell]] = []
    for name, results in runs.items():
        metrics = zip(*map(_metrics, results), strict=True)
        cells: list[Cell] = [Spread.of(values) if len(results) > 1 else values[0] for values in metrics]
        table_rows.append([name, *([] if counts == {1} else [len(results)]), *cells])
    return Table(title, columns, table_rows, header)


def _identity(result: APResult) -> tuple[Any, ...]:
    return result.dataset, result.fog_density, result.num_images, result.num_boxes, tuple(result.ap50_per_class)


def _describe(result: APResult) -> str:
    fog = "no fog" if result.fog_density is None else f"fog density {result.fog_density:g}"
    return f"{result.dataset} ({fog}), {result.num_images} images, {result.num_boxes} boxes"


def _metrics(result: APResult) -> list[float]:
    return [*result.ap50_per_class.values(), result.ap50, result.ap75, result.ap]


def _result_tables(run: str, results: Mapping[str, APResult], configuration: str) -> list[Table]:
    return [ap_table({run: result}, config_hash=configuration) for result in results.values()]


RESULTS = ResultStore(APResult.from_dict, _result_tables)
"""The results in the output folder of a run, for either engine."""


def write_detections(folder: str | Path, name: str, detections: Sequence[Detection]) -> None:
    """Write ``NAME.json`` with the detections on a data set: COCO's result format, but for categories from 0."""
    write_atomically(Path(folder) / f"{name}.json", json.dumps(detections))
