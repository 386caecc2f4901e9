"""Whole data sets, encoded by all processes together, and the recall on them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from torch import Tensor

from gh_downstream.data.images import StoredImage
from gh_downstream.data.skipped import SkippedImages
from gh_downstream.retrieval.data import RetrievalDataset
from gh_downstream.retrieval.encoders import DualEncoder
from gh_downstream.retrieval.evaluation import RetrievalResult, evaluate_retrieval
from gh_downstream.retrieval.image_batches import image_batches

logger = logging.getLogger(__name__)


@torch.no_grad()
def evaluate_model(
    encoder: DualEncoder,
    datasets: Mapping[str, RetrievalDataset],
    workers: int = 0,
    batch_size: int = 128,
    max_skipped: float = 0.0,
) -> dict[str, RetrievalResult]:
    """Measure the recall on data sets; the processes, which all call this, share the encoding and the ranking.

    Each encodes whole batches of those that a single process would encode, so the results do not depend on the number
    of processes. Features are computed in the precision of the weights, whatever ``training.mixed_precision`` is: the
    results are those of the model as it is exported.

    Args:
        encoder: In evaluation mode, on its device.
        datasets: Images with captions by name.
        workers: Processes that read images.
        batch_size: Images, or captions, that are encoded at a time.
        max_skipped: Share of the images of a data set that may be unreadable: they are left out with their captions,
            and named in the log.

    Returns:
        The results by name, the same in every process.

    Raises:
        ValueError: More images than that cannot be read.
    """
    results = {}
    for name, dataset in datasets.items():
        images, faults = _encode_images(encoder, dataset.images, workers, batch_size)
        if unread := _skipped(name, dataset, faults, max_skipped):
            images = images[[index for index in range(len(images)) if index not in unread]]
            dataset = dataset.without(unread)
        results[name] = evaluate_retrieval(
            images,
            _encode_texts(encoder, dataset.texts, batch_size),
            torch.tensor(dataset.image_of_text, device=images.device),
            name,
            distributed=PartialState().num_processes > 1,
        )
    return results


def _encode_images(
    encoder: DualEncoder, images: Sequence[str | StoredImage], workers: int, batch_size: int
) -> tuple[Tensor, list[tuple[int, str]]]:
    """Features of all images, ``[N, D]``, and what is wrong with those that cannot be read, by index; theirs are 0."""
    rows, features = _share(encoder, len(images), batch_size)
    faults = []
    for read, pixels, unread in image_batches(encoder, images[rows.start : rows.stop], workers, batch_size):
        faults += [(rows.start + index, fault) for index, fault in unread.items()]
        if read:
            features[read] = encoder.encode_image(pixels.to(features.device)).float()
    return gather(features)[: len(images)], gather_object(faults)


def _encode_texts(encoder: DualEncoder, texts: Sequence[str], batch_size: int) -> Tensor:
    """Features of all captions, ``[M, D]``."""
    rows, features = _share(encoder, len(texts), batch_size)
    for first in range(len(texts))[rows.start : rows.stop : batch_size]:
        tokens = encoder.tokenize(texts[first : first + batch_size])
        features[first - rows.start :][: len(tokens)] = encoder.encode_text(tokens.to(features.device))
    return gather(features)[: len(texts)]


def _share(encoder: DualEncoder, length: int, batch_size: int) -> tuple[range, Tensor]:
    """Rows that this process encodes, as many in each, and a place for their features.

    The rows that the last processes have too many come after all data.
    """
    state = PartialState()
    rows = batch_size * math.ceil(length / (batch_size * state.num_processes))
    features = torch.zeros(rows, encoder.embed_dim, device=encoder.logit_scale.device)
    return range(state.process_index * rows, (state.process_index + 1) * rows), features


def _skipped(name: str, dataset: RetrievalDataset, faults: Iterable[tuple[int, str]], max_skipped: float) -> set[int]:
    """Indices of the images that are left out, named in the log, if they are not too many."""
    key = f"validation.{name}"
    skipped = SkippedImages({key: len(dataset.images)}, max_skipped)
    unread = set()
    for index, fault in faults:
        skipped.add(key, str(dataset.images[index]), fault)
        unread.add(index)
        if PartialState().is_main_process:
            logger.warning("%s: left out with its captions: %s", key, fault)
    return unread
