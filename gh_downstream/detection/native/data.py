"""Records as tensors: the batch of a training step, its targets checked, and the images of an evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gh_downstream.detection.augmentation import strong_view
from gh_downstream.detection.data import DetectionDataset, Record
from gh_downstream.detection.data.images import read_rgb
from gh_downstream.training import batch_samples, derive_seed, sample_generator, warn_of_repeats


def read_image(record: Record) -> Tensor:
    """Read an image as uint8 of shape ``[3, H, W]``, RGB: a quarter of what floats take on the way to the device.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is not an image, or not of the size that the annotations say.
    """
    pixels = read_rgb(record["file_name"])
    if pixels.shape[:2] != (record["height"], record["width"]):
        size, expected = f"{pixels.shape[1]} x {pixels.shape[0]}", f"{record['width']} x {record['height']}"
        raise ValueError(f"{record['file_name']} has {size} pixels, its annotations say {expected} (width x height)")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def unit_range(image: Tensor) -> Tensor:
    """Return an image in [0, 1]: of uint8, in float32 on its device; another as it is."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


def strong_image(image: Tensor, seed: int) -> Tensor:
    """Return the strong view of an image that :func:`read_image` has read; torch's global generator is seeded."""
    torch.default_generator.manual_seed(seed)
    return torch.from_numpy(strong_view(image.permute(1, 2, 0).numpy(), "RGB")).permute(2, 0, 1).contiguous()


def read_target(record: Record) -> dict[str, Any]:
    """Return the boxes of a record for training: ``boxes`` ``[n, 4]`` as x1, y1, x2, y2, ``labels`` ``[n]`` from 0.

    Regions to ignore (crowds) are left out.
    """
    objects = [annotation for annotation in record["annotations"] if not annotation["iscrowd"]]
    boxes = torch.tensor([annotation["bbox"] for annotation in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([annotation["category_id"] for annotation in objects], dtype=torch.int64)
    return {"boxes": boxes, "labels": labels, "file_name": record["file_name"]}


def checked_targets(
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Any]],
    num_classes: int,
    first_label: int = 1,
    domain: str = "source",
) -> list[dict[str, Tensor]]:
    """Check the targets of images, and return them in torchvision's form.

    The arguments are those of :class:`~gh_downstream.detection.native.DomainAdaptiveDetector` in training, of a
    ``domain``. What is returned has boxes in float32 and labels from ``first_label``.

    Raises:
        ValueError: There are not as many targets as images or labels as boxes, or a box is degenerate, outside of its
            image, or of an unknown class.
    """
    if len(images) != len(targets):
        raise ValueError(f"{len(images)} {domain} images but targets for {len(targets)}")
    converted = [
        {"boxes": target["boxes"].float().reshape(-1, 4), "labels": target["labels"].long() + first_label}
        for target in targets
    ]
    names = [target.get("file_name", f"{domain} image {i} of the batch") for i, target in enumerate(targets)]
    faults = []
    for name, image, target in zip(names, images, converted, strict=True):
        boxes, labels, (height, width) = target["boxes"], target["labels"], image.shape[1:]
        if len(boxes) != len(labels):
            raise ValueError(f"{name}: {len(boxes)} boxes but {len(labels)} labels")
        # Written so that NaN is degenerate. Rounded annotations may be off by a pixel.
        degenerate = ~(boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        outside = (
            (boxes < -1).any(dim=1) | (boxes[:, ::2] > width + 1).any(dim=1) | (boxes[:, 1::2] > height + 1).any(1)
        )
        unknown = (labels < first_label) | (labels >= num_classes + first_label)
        faults.append(torch.stack([degenerate, outside, unknown]))
    # All images at once: the device is read once a step, and nothing is copied to it.
    if faults and torch.cat(faults, dim=1).any():
        i = next(i for i, found in enumerate(faults) if found.any())
        degenerate, outside, _ = faults[i]
        k = int(faults[i].any(dim=0).int().argmax())
        box, (height, width) = converted[i]["boxes"][k].tolist(), images[i].shape[1:]
        if degenerate[k]:
            problem = f"box {box} does not have a positive width and height"
        elif outside[k]:
            problem = f"box {box} is outside of the image of {width} x {height} pixels (width x height)"
        else:
            label = int(converted[i]["labels"][k]) - first_label
            problem = f"label {label} of box {box} is not between 0 and {num_classes - 1}"
        raise ValueError(f"{names[i]}: {problem}")
    return converted


class StepBatches:
    """The batch of each step, as a pure function of the step: arguments of the model's training forward.

    Args:
        source: Labelled images.
        target: Images of the other domain; None for the source alone.
        batch_size: Source images in each step, of all ranks together; as many of the target.
        flip: Flip half of the images.
        seed: Seed of the order and of the augmentation.
        two_views_from: Step from which ``target_images`` are strong views of ``target_weak_images``, for a mean
            teacher; None for never.
    """

    def __init__(
        self,
        source: DetectionDataset,
        target: DetectionDataset | None,
        batch_size: int,
        flip: bool,
        seed: int,
        two_views_from: int | None = None,
    ) -> None:
        self.source = source
        # Target labels end here, whatever was read.
        self.target = None if target is None else target.without_labels()
        self.batch_size = batch_size
        self.flip = flip
        self.two_views_from = two_views_from
        self.seeds = derive_seed(seed, 0), derive_seed(seed, 1)
        lengths = {"source": len(source)} | ({} if target is None else {"target": len(target)})
        warn_of_repeats("batch_size", batch_size, lengths)

    def __call__(self, step: int, rank: int, ranks: int) -> dict[str, Any]:
        """Return the share of a rank of the batch of a step, counted from 0."""
        images, targets = self._samples(self.source, step, self.seeds[0], rank, ranks)
        batch: dict[str, Any] = {"source_images": images, "source_targets": targets}
        if self.target is not None:
            batch["target_images"], unlabelled = self._samples(self.target, step, self.seeds[1], rank, ranks)
            targets = [*targets, *unlabelled]
            if self.two_views_from is not None and step >= self.two_views_from:
                weak = batch["target_weak_images"] = batch["target_images"]
                batch["target_images"] = [
                    strong_image(image, derive_seed(self.seeds[1], "strong", step, position))
                    for position, image in enumerate(weak, rank * len(weak))
                ]
        return batch | {"file_names": [target["file_name"] for target in targets]}

    def _samples(
        self, dataset: DetectionDataset, step: int, seed: int, rank: int, ranks: int
    ) -> tuple[list[Tensor], list[dict[str, Any]]]:
        images, targets = [], []
        for position, index in batch_samples(step, len(dataset), self.batch_size, seed, rank, ranks):
            record = dataset.records[index]
            image, target = read_image(record), read_target(record)
            if self.flip and torch.rand((), generator=sample_generator(seed, step, position)) < 0.5:
                image = image.flip(2)
                target["boxes"][:, [0, 2]] = image.shape[2] - target["boxes"][:, [2, 0]]
            images.append(image)
            targets.append(target)
        return images, targets


def with_image(record: Record) -> tuple[Record, Tensor]:
    """Return a record with its image, as :func:`read_image` reads it."""
    return record, read_image(record)
