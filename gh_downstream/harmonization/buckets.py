"""Many gradients as a few flat vectors: an accelerator launches a few kernels, instead of some for each tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor

LIMIT = 1 << 25
"""Entries of a vector, if no single gradient is longer: 128 MiB of float32."""


class Buckets:
    """Where the gradients of parameters lie in flat vectors, of one device and type each.

    Half precision is widened to float32 in them.

    Args:
        parameters: The parameters.
        first: The first so many get vectors of their own.
        every: Whether parameters without a gradient get zeros: other ranks may have one for them.

    Attributes:
        first: Number of these vectors; they come first.
    """

    def __init__(self, parameters: Sequence[Tensor], first: int = 0, every: bool = False) -> None:
        self._like = [torch.empty_like(parameter, device="meta") for parameter in parameters]  # dense in any layout
        self._devices: list[torch.device] = []
        self._places: list[list[int]] = []
        self._given = set(range(len(parameters))) if every else set()
        open_vectors: dict[object, list[int]] = {}
        length: dict[object, int] = {}
        for place, parameter in enumerate(parameters):
            kind = parameter.device, parameter.dtype, place < first
            if kind not in open_vectors or length[kind] + parameter.numel() > LIMIT:
                open_vectors[kind], length[kind] = [], 0
                self._places.append(open_vectors[kind])
                self._devices.append(parameter.device)
            open_vectors[kind].append(place)
            length[kind] += parameter.numel()
        self.first = sum(places[0] < first for places in self._places)

    def packed(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """Return the vectors, zero where there is no gradient; the list is emptied on the way, for memory."""
        vectors: list[Tensor | None] = []
        for places, device in zip(self._places, self._devices, strict=True):
            dtype = torch.promote_types(self._like[places[0]].dtype, torch.float32)
            vector = torch.empty(sum(self._like[k].numel() for k in places), dtype=dtype, device=device)
            sources, targets = [], []
            for k, part in zip(places, self._parts(vector, places), strict=True):
                gradient, gradients[k] = gradients[k], None
                if gradient is None:
                    part.zero_()
                    continue
                self._given.add(k)
                if _order(gradient) == _order(self._like[k]):
                    sources.append(gradient.as_strided(part.shape, (1,)))
                    targets.append(part)
                else:  # among the others it would make each of them a kernel
                    part.as_strided(gradient.shape, self._like[k].stride()).copy_(gradient)
            if sources:
                torch._foreach_copy_(targets, sources)
            vectors.append(vector)
        return vectors

    def unpacked(self, vectors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return gradients of the parameters' types as views of vectors, None where none of those packed had one."""
        gradients: list[Tensor | None] = [None] * len(self._like)
        for places, vector in zip(self._places, vectors, strict=True):
            assert vector is not None
            typed = vector.to(self._like[places[0]].dtype)
            for k, part in zip(places, self._parts(typed, places), strict=True):
                if k in self._given:
                    gradients[k] = part.as_strided(self._like[k].shape, self._like[k].stride())
        return gradients

    def _parts(self, vector: Tensor, places: Sequence[int]) -> Sequence[Tensor]:
        return vector.split([self._like[k].numel() for k in places])


def _order(tensor: Tensor) -> list[int]:
    """How a tensor lies in memory; the stride over a single entry says nothing."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
