"""Recall of image-text retrieval in both directions, zero-shot accuracy, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from gh_downstream.reporting import Cell, ResultStore, Spread, Table, comparable_runs

RECALLS = (1, 5, 10)
"""The K of R@K."""

TIE = 1e-9
"""Cosine similarities no further apart than this are tied: far above the rounding of float64, in which they are
computed, and far below that of float32, in which the features come."""

DIRECTIONS = ("image_to_text", "text_to_image")
METRICS = (
    *(f"{direction}_{metric}" for direction in DIRECTIONS for metric in (*(f"R@{k}" for k in RECALLS), "median_rank")),
    "mean_recall",
)
"""Names of the metrics, those of open_clip where it has them."""

TOP = (1, 5)
ZERO_SHOT_METRICS = tuple(f"zero_shot_top{k}" for k in TOP)
"""Names of the metrics of images that are classified by texts."""

_COLUMNS = (*(f"{short} {m}" for short in ("i2t", "t2i") for m in (*(f"R@{k}" for k in RECALLS), "rank")), "mR")
_CONVENTION = (
    "i2t: captions for an image, one of its own among the first K; t2i: images for a caption; R@K in percent, rank is "
    "the median from 1, ties count against the model; a caption of several images is right for each; mR is the mean of "
    "the six recalls"
)
_KINDS: dict[tuple[str, ...], tuple[str, Sequence[str], str, str]] = {
    METRICS: ("Recall", _COLUMNS, "captions", _CONVENTION),
    ZERO_SHOT_METRICS: (
        *("Zero-shot accuracy", tuple(f"top-{k}" for k in TOP), "classes"),
        "percent of the images whose class is among the first K by its texts; ties count against the model",
    ),
}
"""Of each kind of metrics: title and columns of a table, what the texts are, and how to read it."""


@dataclass(frozen=True)
class RetrievalResult:
    """Recall on one data set, or the accuracy of classification by texts.

    Args:
        name: Name of the data set.
        num_images: Number of images.
        num_texts: Number of captions, or of classes.
        metrics: By the names in ``METRICS``: ``image_to_text_R@K`` is the share of images with one of their captions
            among the K most similar ones, ``text_to_image_R@K`` the share of captions with an image of theirs among the
            K most similar ones, both in percent from 0 to 100; ``…_median_rank`` counts from 1, a half rounded down;
            ``mean_recall`` is the mean of the six recalls. Or by those in ``ZERO_SHOT_METRICS``: the share of images
            whose class is among the first, in percent.
        ranks: Ranks of the first right answers of all queries, from 1, by direction, ``image_to_text`` and
            ``text_to_image``, or ``zero_shot``; not kept in files.
    """

    name: str
    num_images: int
    num_texts: int
    metrics: dict[str, float]
    ranks: Mapping[str, Sequence[int]] = field(default_factory=dict, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.compare}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RetrievalResult:
        """Return the result that :meth:`as_dict` gave.

        Raises:
            ValueError: A key or a metric is missing or unknown.
        """
        names = {field.name for field in fields(cls) if field.compare}
        if wrong := names ^ set(values):
            raise ValueError(f"not a retrieval result: missing or unknown keys {sorted(wrong)}")
        known = ZERO_SHOT_METRICS if ZERO_SHOT_METRICS[0] in values["metrics"] else METRICS
        if wrong := set(known) ^ set(values["metrics"]):
            raise ValueError(f"not a retrieval result: missing or unknown metrics {sorted(wrong)}")
        return cls(**{**values, "metrics": dict(values["metrics"])})


def evaluate_retrieval(
    image_features: Tensor,
    text_features: Tensor,
    image_of_text: Tensor | Sequence[int],
    name: str,
    *,
    caption_ids: Tensor | Sequence[int] | None = None,
    chunk: int = 2048,
    distributed: bool = False,
) -> RetrievalResult:
    """Rank all captions for each image and all images for each caption by cosine similarity.

    The rank of an image's best caption counts (any hit), from 1; its other captions do not stand in the way. So does
    that of the best image of a caption that several images share. A tie counts against the model: wrong answers as
    similar as the right one rank before it, so features that are all the same recall nothing. With one caption for each
    image, no caption twice and no ties, the recalls and median ranks are those of open_clip's ``get_clip_metrics``.

    Ranks are counted chunk by chunk in float64: beside the features and one rank for each query, memory holds a
    similarity matrix of ``chunk`` by ``chunk``.

    Args:
        image_features: Features of the images, ``[N, D]``, on the CPU or a GPU with float64; normalised here.
        text_features: Features of the captions, ``[M, D]``, on the same device; normalised here.
        image_of_text: Index of the image that each caption belongs to, ``[M]``, from 0 to N - 1.
        name: Name of the data set.
        caption_ids: Index of the first caption that says the same for each caption, ``[M]``: they are right for the
            images of each other, and all have the features of the first. By default no two say the same.
        chunk: Number of images and of captions compared at a time; no influence on the result.
        distributed: Share the work between the processes of ``torch.distributed``. All of them call this with the same
            features of the whole data set, and all get the result.

    Raises:
        ValueError: Shapes do not fit, a feature is not finite, a caption names an image that is not there, one of
            ``caption_ids`` is not the first of its kind, an image has no caption, the chunk is not positive, or the
            processes have different features.
        RuntimeError: ``distributed`` without an initialised process group.
    """
    image_of_text = torch.as_tensor(image_of_text, device=image_features.device)
    _check(image_features, text_features, image_of_text, name)
    image_of_text = image_of_text.long()
    first = torch.arange(len(text_features), device=image_of_text.device)
    if caption_ids is not None:
        first, order = torch.as_tensor(caption_ids, device=first.device), first
        if first.shape != order.shape or not ((first >= 0) & (first <= order)).all() or (first[first] != first).any():
            raise ValueError(f"data set {name!r}: caption_ids must be the index of the first equal caption for each")
        text_features = text_features[first]
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    rank, ranks = 0, 1
    if distributed:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("evaluate_retrieval(distributed=True) needs torch.distributed.init_process_group first")
        _check_equal_over_ranks(image_features, text_features, image_of_text, name)
        rank, ranks = dist.get_rank(), dist.get_world_size()
    counts = _count_wrong(image_features, text_features, image_of_text, first, chunk, rank, ranks)
    metrics: dict[str, float] = {}
    found = {}
    for direction, count in zip(DIRECTIONS, counts, strict=True):
        if distributed:
            dist.all_reduce(count)
        found[direction] = (count + 1).tolist()
        metrics |= {f"{direction}_R@{k}": _share_up_to(k, found[direction]) for k in RECALLS}
        metrics[f"{direction}_median_rank"] = float(np.floor(np.median(found[direction])))
    recalls = [metrics[f"{direction}_R@{k}"] for direction in DIRECTIONS for k in RECALLS]
    metrics["mean_recall"] = sum(recalls) / len(recalls)
    return RetrievalResult(name, len(image_features), len(text_features), metrics, found)


def evaluate_zero_shot(
    image_features: Tensor, class_features: Tensor, class_of_image: Tensor, name: str, *, chunk: int = 2048
) -> RetrievalResult:
    """Rank the classes for each image by cosine similarity; ties count against the model, as in the recall.

    Args:
        image_features: Features of the images, ``[N, D]``; normalised here.
        class_features: Features of the classes, ``[C, D]``, on the same device; normalised here.
        class_of_image: Index of the class of each image, ``[N]``.
        name: Name of the data set.
        chunk: Number of images compared at a time; no influence on the result.

    Raises:
        ValueError: A feature is not finite.
    """
    _check_finite(f"data set {name!r}: ", image=image_features, text=class_features)
    classes, ranks = _normalise(class_features), []
    for images, own in zip(image_features.split(chunk), class_of_image.split(chunk), strict=True):
        similarities = _normalise(images) @ classes.T
        # The class itself is among those that are counted.
        ranks += (similarities >= similarities.gather(1, own[:, None]) - TIE).sum(1).tolist()
    metrics = {metric: _share_up_to(k, ranks) for metric, k in zip(ZERO_SHOT_METRICS, TOP, strict=True)}
    return RetrievalResult(name, len(image_features), len(class_features), metrics, {"zero_shot": ranks})


def _share_up_to(k: int, ranks: Sequence[int]) -> float:
    """Percent of the ranks that are ``k`` or better."""
    return 100 * float(np.mean(np.asarray(ranks) <= k))


def _count_wrong(
    images: Tensor, texts: Tensor, image_of_text: Tensor, first: Tensor, chunk: int, rank: int, ranks: int
) -> tuple[Tensor, Tensor]:
    """Count wrong captions before each image's first right one, ``[N]``, and wrong images before each caption's one.

    Only chunks of images from ``rank`` on in steps of ``ranks`` are looked at: the counts of all ranks add up.
    """
    similarities = torch.empty(len(texts), dtype=torch.float64, device=images.device)  # of captions and their images
    for start in range(0, len(texts), chunk):
        columns = slice(start, start + chunk)
        own_images = images[image_of_text[columns]]
        similarities[columns] = (_normalise(own_images) * _normalise(texts[columns])).sum(1) - TIE
    image_threshold = similarities.new_full((len(images),), -torch.inf)
    image_threshold.scatter_reduce_(0, image_of_text, similarities, "amax")
    text_threshold = similarities.scatter_reduce(0, first, similarities, "amax")[first]

    wrong_texts = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    wrong_images = torch.zeros(len(texts), dtype=torch.int64, device=images.device)
    for start in range(rank * chunk, len(images), ranks * chunk):
        rows = slice(start, start + chunk)
        chunk_images = _normalise(images[rows])
        (own,) = torch.where((image_of_text >= start) & (image_of_text < start + len(chunk_images)))
        for text_start in range(0, len(texts), chunk):
            columns = slice(text_start, text_start + chunk)
            similarity = chunk_images @ _normalise(texts[columns]).T
            # The captions of the chunk, each once, and which of them the images have as their own.
            said, place = first[columns].unique(return_inverse=True)
            own_place = torch.searchsorted(said, first[own]).clamp(max=len(said) - 1)
            there = said[own_place] == first[own]
            right = torch.zeros(len(chunk_images), len(said), dtype=torch.bool, device=images.device)
            right[image_of_text[own[there]] - start, own_place[there]] = True
            similarity.masked_fill_(right[:, place], -torch.inf)
            wrong_texts[rows] += (similarity >= image_threshold[rows, None]).sum(1)
            wrong_images[columns] += (similarity >= text_threshold[columns]).sum(0)
    return wrong_texts, wrong_images


def _normalise(features: Tensor) -> Tensor:
    return normalize(features.detach().double(), dim=1)


def _check(images: Tensor, texts: Tensor, image_of_text: Tensor, name: str) -> None:
    """Raise a ``ValueError`` that says what is wrong with the data set, if anything is."""
    prefix = f"data set {name!r}: "
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"{prefix}image and text features must be [N, D] and [M, D] with the same D, got "
            f"{list(images.shape)} and {list(texts.shape)}"
        )
    if not len(images) or not len(texts):
        raise ValueError(f"{prefix}recall needs images and captions, got {len(images)} and {len(texts)}")
    if image_of_text.shape != texts.shape[:1] or image_of_text.is_floating_point():
        raise ValueError(
            f"{prefix}image_of_text must be one integer for each of the {len(texts)} captions, got shape "
            f"{list(image_of_text.shape)} of {image_of_text.dtype}"
        )
    _check_finite(prefix, image=images, caption=texts)
    if len(outside := torch.where((image_of_text < 0) | (image_of_text >= len(images)))[0]):
        raise ValueError(
            f"{prefix}{len(outside)} captions have no image: caption {int(outside[0])} names image "
            f"{int(image_of_text[outside[0]])}, there are images 0 to {len(images) - 1}"
        )
    if len(bare := torch.where(image_of_text.long().bincount(minlength=len(images)) == 0)[0]):
        raise ValueError(
            f"{prefix}{len(bare)} of {len(images)} images have no caption, first image {int(bare[0])}: "
            "leave them out, recall needs the right answer of every query"
        )


def _check_finite(prefix: str, **features_of: Tensor) -> None:
    for kind, features in features_of.items():
        lowest, highest = features.detach().aminmax(dim=1)  # Both are not a number where one of the row is not.
        if len(faulty := torch.where(~(lowest.isfinite() & highest.isfinite()))[0]):
            raise ValueError(
                f"{prefix}the features of {len(faulty)} of {len(features)} {kind}s are not finite, first of {kind} "
                f"{int(faulty[0])}: the model has diverged, or overflows in its precision"
            )


def _check_equal_over_ranks(images: Tensor, texts: Tensor, image_of_text: Tensor, name: str) -> None:
    """Refuse ranks that hold their own part of the features, whose counts would not add up to anything."""
    sums, sizes = torch.zeros(2, 3, dtype=torch.float64, device=images.device)
    for index, tensor in enumerate((images, texts, image_of_text)):
        for part in tensor.detach().split(2**14):
            sums[index] += part.double().sum()
            sizes[index] += part.double().abs().sum()
    lowest, highest = sums.clone(), sums.clone()
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    dist.all_reduce(sizes, dist.ReduceOp.MAX)
    if not (highest - lowest <= 1e-9 * sizes).all():  # Processes may add in another order.
        raise ValueError(
            f"data set {name!r}: the processes have different features; gather the features of the whole data set on "
            "every process, or evaluate on one of them with distributed=False"
        )


def recall_table(
    rows: Mapping[str, RetrievalResult | Sequence[RetrievalResult]], *, config_hash: str, title: str = "Recall"
) -> Table:
    """Compare the recall, and the median ranks, of several models on one data set.

    Args:
        rows: Results by model or method, of one that has several seeds as a sequence, which prints as mean ± sample
            standard deviation.
        config_hash: Hash of the configuration that the results come from.
        title: Title of the table.

    Raises:
        ValueError: There is no result, or two results are of different data sets or numbers of images or captions.
    """
    runs = comparable_runs(rows, RetrievalResult, "recall table", _describe, _describe)
    header = [f"data set: {_describe(next(iter(runs.values()))[0])}", f"configuration: {config_hash}", _CONVENTION]
    several = any(len(results) > 1 for results in runs.values())
    if several:
        header.append("± is the sample standard deviation over runs with different seeds")
    table_rows: list[list[Cell]] = []
    for name, results in runs.items():
        metrics = ([result.metrics[metric] for result in results] for metric in METRICS)
        cells: list[Cell] = [Spread.of(values) if len(values) > 1 else values[0] for values in metrics]
        table_rows.append([name, *([len(results)] if several else []), *cells])
    return Table(title, ["model", *(["runs"] if several else []), *_COLUMNS], table_rows, header)


def results_table(
    run: str, results: Mapping[str, RetrievalResult], config_hash: str, metrics: tuple[str, ...] = METRICS
) -> Table:
    """Show a run on its validation sets that have one kind of metrics, with their sizes: a row for each."""
    title, columns, texts, convention = _KINDS[metrics]
    rows: list[list[Cell]] = [
        [r.name, *(r.metrics[metric] for metric in metrics), r.num_images, r.num_texts] for r in results.values()
    ]
    header = [f"configuration: {config_hash}", convention]
    return Table(f"{title} of {run}", ["data set", *columns, "images", texts], rows, header)


def _tables(run: str, results: Mapping[str, RetrievalResult], config_hash: str) -> list[Table]:
    kinds = {kind: {name: r for name, r in results.items() if kind[0] in r.metrics} for kind in _KINDS}
    return [results_table(run, some, config_hash, kind) for kind, some in kinds.items() if some]


def _describe(result: RetrievalResult) -> str:
    return f"{result.name}, {result.num_images} images, {result.num_texts} captions"


RESULTS = ResultStore(RetrievalResult.from_dict, _tables)
"""The results in the output folder of a run."""
