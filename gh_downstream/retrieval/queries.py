"""The rank of every query of an evaluation, as JSON lines, to see what a model gets wrong."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gh_downstream.retrieval.evaluation import RetrievalResult

Side = tuple[Sequence[Any], Tensor]
"""Images or texts, and their features."""


def rank_lines(result: RetrievalResult, images: Side, texts: Side) -> Iterator[str]:
    """Yield a line for each query: ``data``, ``direction``, ``query``, ``rank`` of its first right answer, and ``top``.

    ``top`` is the most similar answer; of those that tie the first, which ranks behind wrong ones if it is right.
    """
    sides = {"image_to_text": (images, texts), "text_to_image": (texts, images), "zero_shot": (images, texts)}
    for direction, ranks in result.ranks.items():
        (queries, features), (answers, candidates) = sides[direction]
        for query, rank, best in zip(queries, ranks, _most_similar(features, candidates), strict=True):
            line = {"data": result.name, "direction": direction, "query": str(query), "rank": rank}
            yield json.dumps(line | {"top": str(answers[best])}) + "\n"


def _most_similar(queries: Tensor, candidates: Tensor, chunk: int = 2048) -> Iterator[int]:
    for some in queries.split(chunk):
        rows = normalize(some.double(), dim=1)
        pieces = (rows @ normalize(piece.double(), dim=1).T for piece in candidates.split(chunk))
        best = [piece.max(dim=1) for piece in pieces]
        values, places = (torch.stack(parts) for parts in zip(*best, strict=True))
        piece = values.argmax(dim=0)
        yield from (piece * chunk + places.gather(0, piece[None])[0]).tolist()
