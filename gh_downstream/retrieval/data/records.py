"""Images and captions as plain lists."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from gh_downstream.data.images import StoredImage


@dataclass(frozen=True)
class RetrievalDataset:
    """Images, captions, and which belong together.

    Args:
        name: Names the data in messages.
        images: Paths of the images, or where in other files they are, each once.
        texts: Captions, in the order of their images.
        image_of_text: For each caption the index of its image; empty where captions stand without images.
    """

    name: str
    images: Sequence[str | StoredImage]
    texts: list[str]
    image_of_text: list[int]

    @classmethod
    def from_pairs(cls, name: str, pairs: Iterable[tuple[str | StoredImage, str]]) -> RetrievalDataset:
        """Group (image, caption) pairs by image; images stay in the order of their first pair."""
        texts_of: dict[str | StoredImage, list[str]] = {}
        for image, text in pairs:
            texts_of.setdefault(image, []).append(text)
        return cls(
            name,
            images=list(texts_of),
            texts=[text for texts in texts_of.values() for text in texts],
            image_of_text=[index for index, texts in enumerate(texts_of.values()) for _ in texts],
        )

    def without(self, images: Collection[int]) -> RetrievalDataset:
        """Return the data set without some images, given by their indices, and without their captions."""
        kept = [index for index in range(len(self.images)) if index not in images]
        position = {index: place for place, index in enumerate(kept)}
        pairs = [
            (text, position[index])
            for text, index in zip(self.texts, self.image_of_text, strict=True)
            if index in position
        ]
        return RetrievalDataset(
            self.name,
            [self.images[index] for index in kept],
            [text for text, _ in pairs],
            [place for _, place in pairs],
        )
