"""Images and captions as plain lists."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from gh_downstream.data.images import StoredImage
from gh_downstream.retrieval.data.values import Fault, Pair


@dataclass(frozen=True)
class RetrievalDataset:
    """Images, captions, and which belong together.

    Args:
        name: Names the data in messages.
        images: Paths of the images, or where in other files they are, each once.
        texts: Captions, in the order of their images.
        image_of_text: For each caption the index of its image; empty where captions stand without images.
        skipped: What is wrong with each caption that was left out, with its image where that has no other.
        templates: Where the captions are names of classes, the texts that name one, with ``{}`` for it.
    """

    name: str
    images: Sequence[str | StoredImage]
    texts: list[str]
    image_of_text: list[int]
    skipped: Sequence[str] = ()
    templates: Sequence[str] = ()

    @property
    def caption_ids(self) -> list[int]:
        """For each caption the index of the first one that says the same, up to space and capital letters."""
        first: dict[str, int] = {}
        return [first.setdefault(" ".join(text.casefold().split()), index) for index, text in enumerate(self.texts)]

    @classmethod
    def from_pairs(cls, name: str, pairs: Iterable[Pair]) -> RetrievalDataset:
        """Group (image, caption) pairs by image; images stay in the order of their first pair."""
        texts_of: dict[str | StoredImage | None, list[str]] = {}
        skipped = []
        for image, text in pairs:
            if isinstance(text, Fault):
                skipped.append(text)
                continue
            texts_of.setdefault(image, []).extend([] if text is None else [text])
        return cls(
            name,
            images=[image for image in texts_of if image is not None],
            texts=[text for texts in texts_of.values() for text in texts],
            image_of_text=[k for k, (image, texts) in enumerate(texts_of.items()) if image is not None for _ in texts],
            skipped=tuple(skipped),
        )

    def without(self, images: Collection[int]) -> RetrievalDataset:
        """Return the data set without some images, given by their indices, and without their captions."""
        kept = [index for index in range(len(self.images)) if index not in images]
        place = {index: position for position, index in enumerate(kept)}
        texts = [k for k, index in enumerate(self.image_of_text) if index in place]
        return RetrievalDataset(
            self.name,
            [self.images[index] for index in kept],
            [self.texts[k] for k in texts],
            [place[self.image_of_text[k]] for k in texts],
            templates=self.templates,
        )
