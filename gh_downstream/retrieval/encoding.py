"""Whole data sets, read in batches and encoded by all processes together, and the recall on them."""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader
from tqdm import tqdm

from gh_downstream.data.images import StoredImage, open_image
from gh_downstream.data.skipped import SkippedImages
from gh_downstream.retrieval.data import RetrievalDataset
from gh_downstream.retrieval.encoders import DualEncoder
from gh_downstream.retrieval.evaluation import RetrievalResult, evaluate_retrieval, evaluate_zero_shot
from gh_downstream.retrieval.queries import rank_lines

logger = logging.getLogger(__name__)


@torch.no_grad()
def evaluate_model(
    encoder: DualEncoder,
    datasets: Mapping[str, RetrievalDataset],
    workers: int = 0,
    batch_size: int = 128,
    max_skipped: float = 0.0,
    lines: list[str] | None = None,
) -> dict[str, RetrievalResult]:
    """Measure the recall on data sets, or, of classes, the zero-shot accuracy.

    The processes, which all call this, share the encoding and the ranking.

    Each encodes whole batches of those that a single process would encode, so the results do not depend on the number
    of processes. The similarities are computed in float64, whatever precision the features come in.

    Args:
        encoder: In evaluation mode, on its device.
        datasets: Images with captions by name.
        workers: Processes that read images.
        batch_size: Images, or captions, that are encoded at a time.
        max_skipped: Share of the images of a data set that may be unreadable: they are left out with their captions,
            and named in the log.
        lines: Gets what :func:`~gh_downstream.retrieval.queries.rank_lines` says of each query.

    Returns:
        The results by name, the same in every process.

    Raises:
        ValueError: More images than that cannot be read.
    """
    results = {}
    for name, dataset in datasets.items():
        images, unread = encode_images(encoder, dataset.images, workers, batch_size)
        read, whole = [index for index in range(len(images)) if index not in unread], dataset
        if unread:
            _check_skipped(f"validation.{name}", dataset, unread, max_skipped)
            images, dataset = images[read], dataset.without(unread)
        texts = dataset.texts
        if dataset.templates:  # A class whose images cannot be read is a wrong answer still.
            chosen, classes = torch.tensor(whole.caption_ids, device=images.device).unique(return_inverse=True)
            texts = [whole.texts[k] for k in chosen.tolist()]
            features = encode_classes(encoder, texts, dataset.templates, batch_size)
            results[name] = evaluate_zero_shot(images, features, classes[read], name)
        else:
            ids = torch.tensor(dataset.caption_ids, device=images.device)
            features = encode_captions(encoder, texts, batch_size)[ids]
            results[name] = evaluate_retrieval(
                images,
                features,
                torch.tensor(dataset.image_of_text, device=images.device),
                name,
                caption_ids=ids,
                distributed=PartialState().num_processes > 1,
            )
        if lines is not None:
            lines += rank_lines(results[name], (dataset.images, images), (texts, features))
    return results


def encode_images(
    encoder: DualEncoder, images: Sequence[str | StoredImage], workers: int, batch_size: int, progress: bool = False
) -> tuple[Tensor, dict[int, str]]:
    """Return the features of all images, ``[N, D]`` in float32, and what is wrong with those that cannot be read.

    The faults are by the index of the image, whose features are 0. Further arguments are as in :func:`image_batches`;
    ``progress`` shows a bar.
    """
    rows, features = _share(encoder, len(images), batch_size)
    faults = []
    batches = image_batches(encoder, images[rows.start : rows.stop], workers, batch_size)
    for read, pixels, unread in tqdm(batches, desc="encoding", unit="batch", disable=None if progress else True):
        faults += [(rows.start + index, fault) for index, fault in unread.items()]
        if read:
            features[read] = encoder.encode_image(pixels.to(features.device)).float()
    return gather(features)[: len(images)], dict(gather_object(faults))


def encode_captions(encoder: DualEncoder, texts: Sequence[str], batch_size: int) -> Tensor:
    """Return the features of all captions, ``[M, D]`` in float32, not normalised."""
    rows, features = _share(encoder, len(texts), batch_size)
    for first in range(len(texts))[rows.start : rows.stop : batch_size]:
        tokens = encoder.tokenize(texts[first : first + batch_size])
        features[first - rows.start :][: len(tokens)] = encoder.encode_text(tokens.to(features.device))
    return gather(features)[: len(texts)]


def encode_classes(encoder: DualEncoder, names: Sequence[str], templates: Sequence[str], batch_size: int) -> Tensor:
    """Return the features of classes, ``[C, D]``: the mean of those of all templates, each normalised."""
    texts = [template.replace("{}", name) for name in names for template in templates]
    return normalize(encode_captions(encoder, texts, batch_size), dim=1).unflatten(0, (len(names), -1)).mean(1)


def _share(encoder: DualEncoder, length: int, batch_size: int) -> tuple[range, Tensor]:
    """Rows that this process encodes, as many in each, and a place for their features.

    The rows that the last processes have too many come after all data.
    """
    state = PartialState()
    rows = batch_size * math.ceil(length / (batch_size * state.num_processes))
    features = torch.zeros(rows, encoder.embed_dim, device=encoder.logit_scale.device)
    return range(state.process_index * rows, (state.process_index + 1) * rows), features


def image_batches(
    encoder: DualEncoder, images: Sequence[str | StoredImage], workers: int, batch_size: int
) -> DataLoader[tuple[list[int], Tensor, dict[int, str]]]:
    """Read images and prepare them for evaluation.

    Args:
        encoder: Prepares the images.
        images: Paths of the images, or where in other files they are.
        workers: Processes that read images.
        batch_size: Images that are read at a time.

    Returns:
        Batches of the indices of the images that can be read, their pixels ``[N, 3, H, W]`` (of shape ``[0]`` where
        there are none), and what is wrong with the others by their index.
    """
    indices: Any = range(len(images))
    return DataLoader(indices, batch_size, num_workers=workers, collate_fn=partial(_read, encoder, images))


def image_or_fault(image: str | StoredImage) -> Image | str:
    """Return an image, or what is wrong with it."""
    try:
        return open_image(image)
    except (FileNotFoundError, ValueError) as error:
        return str(error)


def _read(
    encoder: DualEncoder, images: Sequence[str | StoredImage], indices: Sequence[int]
) -> tuple[list[int], Tensor, dict[int, str]]:
    found = {index: image_or_fault(images[index]) for index in indices}
    faults = {index: image for index, image in found.items() if isinstance(image, str)}
    read = {index: encoder.preprocess(image, False) for index, image in found.items() if not isinstance(image, str)}
    # One tensor for all: each that comes from a worker takes an open file.
    return list(read), torch.stack(list(read.values())) if read else torch.empty(0), faults


def _check_skipped(key: str, dataset: RetrievalDataset, unread: Mapping[int, str], max_skipped: float) -> None:
    """Name the images that are left out in the log, and refuse too many of them."""
    skipped = SkippedImages({key: len(dataset.images)}, max_skipped)
    for index, fault in unread.items():
        skipped.add(key, str(dataset.images[index]), fault)
        if PartialState().is_main_process:
            logger.warning("%s: left out with its captions: %s", key, fault)
