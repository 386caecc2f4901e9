"""Batches of source and target images whose order and augmentation are functions of the seed and the step.

So nothing of the data has to be saved for a training to resume with the batches that it would have had: the loader is
told the step, and counts through the order, for which it reads no image.
"""

from __future__ import annotations

import logging
import random
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, count, islice

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader

from gh_downstream.detection.augmentation import strong_view
from gh_downstream.detection.detectron2.config import check_node
from gh_downstream.detection.detectron2.data.mapper import ImageMapper
from gh_downstream.detection.detectron2.data.register import (
    ImageDict,
    check_files,
    check_registered,
    load_dicts,
    unlabelled,
)
from gh_downstream.training.sampling import derive_seed, warn_of_repeats

logger = logging.getLogger(__name__)

Mapper = Callable[[ImageDict], ImageDict]
Sample = tuple[int, int]
"""Position in the endless sequence of a domain, which no other sample has, and index of the image."""


def build_paired_train_loader(
    cfg: CfgNode, source_mapper: Mapper | None = None, target_mapper: Mapper | None = None
) -> PairedLoader:
    """Build the loader of a configuration.

    The source is ``DATASETS.TRAIN``, read and filtered as Detectron2 does it. The target is ``DATASETS.TARGET``, never
    filtered, which would take its labels; without it the batches are of the source alone.

    Args:
        cfg: With the nodes of this package. ``SEED`` below 0 draws a seed, the same for all processes.
        source_mapper: Maps source images, ``ImageMapper(cfg)`` by default.
        target_mapper: Maps target images; by default as the source mapper does, with a strong view as well if
            ``TEACHER.ENABLED``.

    Raises:
        FileNotFoundError, ValueError: The data are not there, or the configuration does not fit them or lacks nodes.
    """
    check_node(cfg, "DATASETS.TARGET")
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN}: batches of two domains have an order of their "
            "own, that of TrainingSampler"
        )
    source, target = _source(cfg), list(chain.from_iterable(load_dicts(name, labels=False) for name in _target(cfg)))
    check_files(cfg.DATASETS.TRAIN, source)
    check_files(cfg.DATASETS.TARGET, target)
    if cfg.MODEL.MASK_ON:
        _check_masks(source)
    source_mapper = source_mapper or ImageMapper(cfg)
    strong = partial(strong_view, image_format=cfg.INPUT.FORMAT) if cfg.TEACHER.ENABLED else None
    return PairedLoader(
        source,
        target,
        source_mapper,
        target_mapper or TargetMapper(source_mapper, strong),
        source_batch=cfg.SOLVER.IMS_PER_BATCH,
        target_batch=cfg.SOLVER.IMS_PER_BATCH_TARGET,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        workers=cfg.DATALOADER.NUM_WORKERS,
        group_by_orientation=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
    )


class TargetMapper:
    """Maps a target image as a source image is mapped, without its labels, and with two views for a mean teacher.

    Args:
        weak: Maps a dictionary of Detectron2's standard format to ``"image"``, uint8 ``[3, H, W]``; that is
            ``ImageMapper(cfg)`` or any other mapper. It never sees a label.
        strong: Changes the colours of an image, uint8 ``[H, W, 3]``, but moves nothing; then ``"image"`` is this
            strong view and ``"image_weak"`` what ``weak`` returned. None for one view.
    """

    def __init__(self, weak: Mapper, strong: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self.weak = weak
        self.strong = strong

    def __call__(self, image: ImageDict) -> ImageDict:
        """Return what the model is given of an image; ``"domain"`` is ``"target"``."""
        mapped = {key: value for key, value in self.weak(unlabelled(image)).items() if key != "instances"}
        mapped["domain"] = "target"
        if self.strong is not None:
            mapped["image_weak"] = mapped["image"]
            strong = self.strong(mapped["image"].permute(1, 2, 0).numpy())
            mapped["image"] = torch.from_numpy(np.ascontiguousarray(strong.transpose(2, 0, 1)))
        return mapped


class PairedLoader:
    """Training batches for ever: a list of source images and then target images, as the model is given them.

    The batch of a step, with the augmentation of its images, is a function of the arguments and the step, for any
    number of workers. For each image ``random``, ``numpy.random`` and torch (on the CPU) are seeded, and afterwards
    left as they were.

    Args:
        source: Labelled images in Detectron2's standard format.
        target: Images of the other domain; their labels are taken out before anything sees them. Empty for none.
        source_mapper: Maps a dictionary to what the model is given, such as ``ImageMapper(cfg)``.
        target_mapper: The same for the target; by default ``TargetMapper(source_mapper)``.
        source_batch: Source images in each step, of all processes together.
        target_batch: Target images in each step, of all processes together; 0 for as many as of the source.
        seed: Seed of the order and the augmentation, the same in all processes.
        workers: Processes that load images; 0 loads them in this one.
        group_by_orientation: Keep wide and tall images of a domain in separate batches, for less padding.

    Attributes:
        start: Step whose batch comes first, from 0; set it before iteration begins.

    Raises:
        ValueError: There is no source image, a batch cannot be shared equally by the processes, or an image has no size
            to group it by. While iterating, as ``FileNotFoundError``: an image cannot be read or mapped.
    """

    def __init__(
        self,
        source: Sequence[ImageDict],
        target: Sequence[ImageDict],
        source_mapper: Mapper,
        target_mapper: Mapper | None = None,
        *,
        source_batch: int,
        target_batch: int = 0,
        seed: int,
        workers: int = 0,
        group_by_orientation: bool = True,
    ) -> None:
        if not source:
            raise ValueError("there is no source image to train on")
        self.start = 0
        self.workers = workers
        self._domains = [_Domain("source", source, source_mapper, source_batch, seed, group_by_orientation)]
        if target:
            mapper = target_mapper or TargetMapper(source_mapper)
            images = [unlabelled(image) for image in target]
            size = target_batch or source_batch
            self._domains.append(_Domain("target", images, mapper, size, seed, group_by_orientation))

    @property
    def images_per_batch(self) -> int:
        """Images of all domains in each step, of all processes together."""
        return comm.get_world_size() * sum(domain.batch_size for domain in self._domains)

    def __getitem__(self, key: tuple[int, Sample]) -> ImageDict:
        """The image of a sample, by the number of its domain, as the model is given it."""
        domain, sample = key
        return self._domains[domain].load(sample)

    def __iter__(self) -> Iterator[list[ImageDict]]:
        steps = zip(*(domain.batches(self.start) for domain in self._domains), strict=True)
        return iter(
            DataLoader(
                self,  # type: ignore[arg-type]  # as a data set it has places alone
                batch_sampler=([(k, sample) for k, batch in enumerate(step) for sample in batch] for step in steps),
                num_workers=self.workers,
                collate_fn=trivial_batch_collator,
                generator=torch.Generator(),  # or it would draw from the one of the training
            )
        )


def index_batches(
    groups: Sequence[int], batch_size: int, seed: int, rank: int = 0, ranks: int = 1
) -> Iterator[list[Sample]]:
    """Yield the batches of one process, for ever.

    The images come in an endless sequence of one permutation after another. Each process takes every ``ranks``-th of
    them, so that together they take each epoch once, and collects a batch for each group; a full batch is yielded.

    Args:
        groups: Group of each image; a batch is of one group.
        batch_size: Images of this process in a batch.
        seed: Seed of the order.
        rank: Index of this process among ``ranks``.
    """
    waiting: dict[int, list[Sample]] = {group: [] for group in groups}
    for epoch in count():
        generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        order = torch.randperm(len(groups), generator=generator).tolist()
        first = epoch * len(groups)
        for position in range(first + (rank - first) % ranks, first + len(groups), ranks):
            index = order[position - first]
            batch = waiting[groups[index]]
            batch.append((position, index))
            if len(batch) == batch_size:
                yield list(batch)
                batch.clear()


class _Domain:
    """The images of one domain, their order, and how they are mapped."""

    def __init__(
        self, name: str, images: Sequence[ImageDict], mapper: Mapper, batch_size: int, seed: int, grouped: bool
    ) -> None:
        ranks = comm.get_world_size()
        key = "SOLVER.IMS_PER_BATCH" if name == "source" else "SOLVER.IMS_PER_BATCH_TARGET"
        if batch_size < 1 or batch_size % ranks:
            raise ValueError(
                f"a batch of {batch_size} {name} images cannot be shared equally by {ranks} process(es): change {key}"
            )
        warn_of_repeats(key, batch_size, {name: len(images)})
        self.images = DatasetFromList(list(images))
        self.mapper = mapper
        self.batch_size = batch_size // ranks
        self.seed = derive_seed(seed, name)
        self.groups = _orientations(images) if grouped else [0] * len(images)

    def batches(self, start: int) -> Iterator[list[Sample]]:
        """The batches of this process from a step on."""
        batches = index_batches(self.groups, self.batch_size, self.seed, comm.get_rank(), comm.get_world_size())
        return islice(batches, start, None)

    def load(self, sample: Sample) -> ImageDict:
        """Read and map an image."""
        position, index = sample
        image = self.images[index]
        name = image.get("file_name", f"image {index}")
        with _seeded(derive_seed(self.seed, "augmentation", position)):
            try:
                return self.mapper(image)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{name} cannot be used for training: {error}") from error
            except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:  # as Pillow raises them
                raise ValueError(f"{name} cannot be used for training: {error}") from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _orientations(images: Iterable[ImageDict]) -> list[int]:
    try:
        return [int(image["width"] > image["height"]) for image in images]
    except KeyError as error:
        raise ValueError(
            f"an image has no {error} to group it by: give it, or set DATALOADER.ASPECT_RATIO_GROUPING False"
        ) from None


def _source(cfg: CfgNode) -> list[ImageDict]:
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN names no data set")
    for name in cfg.DATASETS.TRAIN:
        check_registered(name)
    try:
        return get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    except AssertionError as error:
        raise ValueError(f"DATASETS.TRAIN: {error}") from None


def _target(cfg: CfgNode) -> Sequence[str]:
    if both := sorted(set(cfg.DATASETS.TRAIN) & set(cfg.DATASETS.TARGET)):
        logger.warning("%s: in DATASETS.TRAIN and in DATASETS.TARGET; a target has no labels", ", ".join(both))
    return cfg.DATASETS.TARGET


def _check_masks(source: Sequence[ImageDict]) -> None:
    for image in source:
        objects = [annotation for annotation in image.get("annotations", ()) if not annotation.get("iscrowd")]
        if not all("segmentation" in annotation for annotation in objects):
            raise ValueError(
                f"MODEL.MASK_ON needs masks, but {image['file_name']} has boxes alone: set MODEL.MASK_ON False"
            )
