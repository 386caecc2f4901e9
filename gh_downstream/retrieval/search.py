"""Find the images that fit a text best: an index of images, and queries to it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gh_downstream.data.images import StoredImage
from gh_downstream.data.paths import printable
from gh_downstream.data.skipped import listed
from gh_downstream.retrieval.encoders import DualEncoder
from gh_downstream.retrieval.encoding import encode_captions, encode_images

logger = logging.getLogger(__name__)

DECIMALS = 6
"""Cosine similarities are rounded to so many decimals: those beyond are noise of single precision."""


class Hit(NamedTuple):
    """An image that a text found, and the cosine similarity of the two, from -1 to 1, rounded to ``DECIMALS``."""

    image: str | StoredImage
    similarity: float


@dataclass(frozen=True, eq=False)
class SearchIndex:
    """The features of images, to be searched by cosine similarity.

    Attributes:
        features: Features of the images, float32 of shape ``[N, D]`` on the CPU, normalised.
        images: The images, as :func:`~gh_downstream.data.images.open_image` takes them.
    """

    features: Tensor
    images: Sequence[str | StoredImage]

    @classmethod
    @torch.no_grad()
    def build(
        cls, encoder: DualEncoder, images: Sequence[str | StoredImage], *, workers: int = 0, batch_size: int = 256
    ) -> SearchIndex:
        """Encode images. Those that cannot be read are left out, counted and named in the log.

        Args:
            encoder: In evaluation mode, on its device.
            images: The images; of equally similar ones the first in this order ranks first.
            workers: Processes that read images.
            batch_size: Images that are encoded at a time.

        Raises:
            ValueError: None of the images can be read, or a feature is not finite.
        """
        encoded, unread = encode_images(encoder, images, workers, batch_size, progress=True)
        faults = [*unread.values()]
        read = [index for index in range(len(images)) if index not in unread]
        if not read:
            raise ValueError(f"none of the {len(images)} images can be read\n{listed(faults)}".strip())
        if faults:
            logger.warning("%d of %d images cannot be read, left out:\n%s", len(faults), len(images), listed(faults))
        features = normalize(encoded[read], dim=1).cpu()
        if len(diverged := torch.where(~features.isfinite().all(dim=1))[0]):
            raise ValueError(
                f"{printable(images[read[int(diverged[0])]])}: its features are not finite; the encoder has diverged"
            )
        return cls(features, [images[index] for index in read])

    def search(self, text_features: Tensor, top: int) -> list[list[Hit]]:
        """Return the images that are most similar to texts.

        Similarities that are equal to ``DECIMALS`` decimals rank in the order of the images.

        Args:
            text_features: Features of the texts, ``[M, D]``; normalised here. See :func:`encode_texts`.
            top: Number of images for each text; all of them where there are fewer.

        Returns:
            For each text its hits, best first.

        Raises:
            ValueError: ``top`` is not positive, or the features are of another shape or not finite.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        shape, width = list(text_features.shape), self.features.shape[1]
        if len(shape) != 2 or shape[1] != width or not text_features.isfinite().all():
            raise ValueError(f"text features must be finite and [M, {width}] as those of the images, got {shape}")
        results = []
        # In double precision, and in pieces, so that the memory for many images stays small.
        for queries in normalize(text_features.detach().float(), dim=1).cpu().double().split(16):
            pieces = [queries @ rows.double().T for rows in self.features.split(2**16)]
            similarities = torch.cat(pieces, dim=1).round(decimals=DECIMALS)
            best, order = (found[:, :top].tolist() for found in similarities.sort(descending=True, stable=True))
            for row in zip(order, best, strict=True):
                results.append([Hit(self.images[index], value) for index, value in zip(*row, strict=True)])
        return results


@torch.no_grad()
def encode_texts(encoder: DualEncoder, texts: Sequence[str]) -> Tensor:
    """Return the float32 features ``[M, D]`` of texts, not normalised, by an encoder in evaluation mode on its device.

    Raises:
        ValueError: A text is empty.
    """
    if empty := [number for number, text in enumerate(texts, start=1) if not text.strip()]:
        raise ValueError(f"text {empty[0]} of {len(texts)} is empty: describe the image to be found")
    return encode_captions(encoder, texts, batch_size=256)
