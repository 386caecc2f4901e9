"""The batches that a dual encoder is trained on, as a function of the step, and the images that they do without."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL.Image import Image
from torch import Tensor, nn

from gh_downstream.data.images import StoredImage
from gh_downstream.data.packed import Packed
from gh_downstream.data.skipped import SkippedImages
from gh_downstream.retrieval.augmentation import AugmentationConfig
from gh_downstream.retrieval.data import RetrievalDataset
from gh_downstream.retrieval.encoders import DualEncoder
from gh_downstream.retrieval.encoding import image_or_fault
from gh_downstream.training import Callback, batch_samples, derive_seed, sample_generator, warn_of_repeats

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class StepBatches:
    """The batch of each step, as a pure function of the step: arguments of the model's training forward.

    Attributes:
        source: Images with captions; of several captions of an image each step draws one.
        target: Images, captions or both of the other domain; None for the source alone.
        encoder: Prepares images and captions.
        batch_size: Source images in each step, of all ranks together; as many images, and captions, of the target.
        seed: Seed of the order, the captions and the augmentation.
        max_skipped: Share of the images of source and target that may be unreadable. Others take their place, as a
            function of the step and the place in the batch; what is wrong with them is in the batch's entry
            ``skipped``.
        augmentation: How the images are changed, each as a function of the step and the place in the batch; None for
            what the encoder does in training.
    """

    source: RetrievalDataset
    target: RetrievalDataset | None
    encoder: DualEncoder
    batch_size: int
    seed: int
    max_skipped: float = 0.0
    augmentation: AugmentationConfig | None = None

    def __post_init__(self) -> None:
        owners = torch.tensor(self.source.image_of_text, dtype=torch.int64)
        counts = owners.bincount(minlength=len(self.source.images))
        if len(bare := torch.where(counts == 0)[0]):
            raise ValueError(
                f"{self.source.name}: {self.source.images[int(bare[0])]} has no caption ({len(bare)} such images)"
            )
        # The captions by image, and where those of an image end; what workers read is in one piece of memory.
        self._captions, self._ends = owners.argsort(stable=True), counts.cumsum(0)
        self._images, self._texts = Packed(self.source.images), Packed(self.source.texts)
        self._target_images = Packed(self.target.images if self.target else ())
        self._target_texts = Packed(self.target.texts if self.target else ())
        self._groups, self._text_groups = _groups(self.source)
        self._augment = None if self.augmentation is None else self.augmentation.build(self.encoder.image_size)
        target = {} if self.target is None else {"target": self.target.images, "target's texts": self.target.texts}
        lengths = {"source": len(self.source.images)} | {name: len(data) for name, data in target.items() if data}
        warn_of_repeats("batch_size", self.batch_size, lengths)

    def __call__(self, step: int, rank: int, ranks: int) -> dict[str, Any]:
        """Return the share of a rank of the batch of a step, counted from 0."""
        skipped = self.skippable()

        def samples(stream: str, length: int) -> list[tuple[int, int]]:
            return batch_samples(step, length, self.batch_size, derive_seed(self.seed, stream), rank, ranks)

        drawn, pixels = self._read("source", self._images, samples("source", len(self._images)), step, skipped)
        chosen = [self._draw(step, *sample) for sample in drawn]
        batch: dict[str, Any] = {
            "source_images": pixels,
            "source_tokens": self.encoder.tokenize([self._texts[k] for k in chosen]),
            "source_groups": self._groups[[k for _, k in drawn]],
            "source_text_groups": self._text_groups[chosen],
        }
        files = [str(self._images[k]) for _, k in drawn]
        if images := self._target_images:
            drawn, batch["target_images"] = self._read(
                "target", images, samples("target images", len(images)), step, skipped
            )
            files += [str(images[k]) for _, k in drawn]
        if texts := self._target_texts:
            chosen = [k for _, k in samples("target texts", len(texts))]
            batch["target_tokens"] = self.encoder.tokenize([texts[k] for k in chosen])
        return batch | {"file_names": files} | ({"skipped": skipped.found} if skipped.found else {})

    def skippable(self) -> SkippedImages:
        """Return a count of what is skipped of source and target, at zero."""
        datasets = {"source": self.source} | ({} if self.target is None else {"target": self.target})
        return SkippedImages({name: len(dataset.images) for name, dataset in datasets.items()}, self.max_skipped)

    def _draw(self, step: int, position: int, image: int) -> int:
        """One of the captions of an image."""
        captions = self._captions[self._ends[image - 1] if image else 0 : self._ends[image]]
        generator = sample_generator(derive_seed(self.seed, "captions"), step, position)
        return int(captions[torch.randint(len(captions), (), generator=generator)])

    def _read(
        self,
        name: str,
        images: Packed[str | StoredImage],
        samples: Sequence[tuple[int, int]],
        step: int,
        skipped: SkippedImages,
    ) -> tuple[list[tuple[int, int]], Tensor]:
        """The samples, with another index where the image cannot be read, and the pixels of all."""
        read, pixels = [], []
        for position, index in samples:
            generator = sample_generator(derive_seed(self.seed, name, "replacements"), step, position)
            while isinstance(image := image_or_fault(images[index]), str):
                skipped.add(name, str(images[index]), image)
                index = int(torch.randint(len(images), (), generator=generator))
            read.append((position, index))
            pixels.append(self._pixels(image, derive_seed(self.seed, name, "augmentation", step, position)))
        return read, torch.stack(pixels)

    def _pixels(self, image: Image, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if self._augment is None:
                return self.encoder.preprocess(image, True)
            return self.encoder.preprocess(self._augment(image), False)


def _groups(dataset: RetrievalDataset) -> tuple[Tensor, Tensor]:
    """Ids of what images, ``[N, K]``, and captions, ``[M]``, belong to, for the model's forward.

    A caption belongs to its image, by the index of it, or to all images that share it, by an id after those; an image
    to itself and to the captions that it shares with others.
    """
    ids, images = dataset.caption_ids, dataset.image_of_text
    images_of: dict[int, set[int]] = {}
    for caption, image in zip(ids, images, strict=True):
        images_of.setdefault(caption, set()).add(image)
    count = len(dataset.images)
    of_texts = [
        count + caption if len(images_of[caption]) > 1 else image for caption, image in zip(ids, images, strict=True)
    ]
    of_images: list[dict[int, None]] = [{image: None} for image in range(count)]
    for image, group in zip(images, of_texts, strict=True):
        of_images[image][group] = None
    width = max(map(len, of_images))
    rows = [[*groups, *[-1] * (width - len(groups))] for groups in of_images]
    return torch.tensor(rows), torch.tensor(of_texts)


class SkippedImagesCallback(Callback):
    """Counts what the batches' entry ``skipped`` names, over all processes, and names it in the log.

    The metrics have the number as ``skipped_images``; it is kept over a restart.

    Args:
        skipped: Counts each image once, and refuses too many of them.
    """

    def __init__(self, skipped: SkippedImages) -> None:
        self.skipped = skipped
        self._lately: list[dict[str, dict[str, str]]] = []

    def on_batch(self, batch: dict[str, Any], average: nn.Module | None) -> None:
        """Take the entry, to be counted at the end of the step."""
        self._lately.append(batch.pop("skipped", {}))

    def on_step_end(self, due: bool) -> None:
        """Count what was skipped lately, of all processes together, so that all stop before the main one saves.

        Raises:
            ValueError: Too many images had to be skipped.
        """
        state = PartialState()
        if not due and state.num_processes > 1:
            return
        lately, self._lately = self._lately, []
        for found in gather_object(lately):
            for dataset, faults in found.items():
                for image, fault in faults.items():
                    if self.skipped.add(dataset, image, fault) and state.is_main_process:
                        logger.warning(
                            "%s: another image takes the place of one that cannot be read: %s", dataset, fault
                        )

    def metrics(self) -> Mapping[str, float]:
        """Return the number of images."""
        return {"skipped_images": len(self.skipped)}

    def state_dict(self) -> dict[str, Any]:
        """Return what was found."""
        return {"found": self.skipped.found}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.skipped.found = state["found"]
