"""Images and captions as plain lists."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class RetrievalDataset:
    """Images, captions, and which belong together.

    Args:
        name: Names the data in messages.
        images: Paths of the images, each once.
        texts: Captions, in the order of their images.
        image_of_text: For each caption the index of its image; empty where captions stand without images.
    """

    name: str
    images: list[str]
    texts: list[str]
    image_of_text: list[int]

    @classmethod
    def from_pairs(cls, name: str, pairs: Iterable[tuple[str, str]]) -> RetrievalDataset:
        """Group (image, caption) pairs by image; images stay in the order of their first pair."""
        texts_of: dict[str, list[str]] = {}
        for image, text in pairs:
            texts_of.setdefault(image, []).append(text)
        return cls(
            name,
            images=list(texts_of),
            texts=[text for texts in texts_of.values() for text in texts],
            image_of_text=[index for index, texts in enumerate(texts_of.values()) for _ in texts],
        )
