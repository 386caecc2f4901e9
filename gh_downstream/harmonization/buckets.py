"""Many gradients as a few flat vectors: an accelerator launches a few kernels, instead of some for each tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from gh_downstream.harmonization.sharding import Spread

LIMIT = 1 << 25
"""Entries of a vector, if no single gradient is longer: 128 MiB of float32."""


class Buckets:
    """Where the gradients of parameters lie in flat vectors, of one device and type each.

    Half precision is widened to float32 in them.

    Args:
        parameters: The parameters.
        first: The first so many get vectors of their own.
        every: Whether parameters without a gradient get zeros: other ranks may have one for them.
        spreads: How each is spread over the ranks; those that are alike in this have vectors of their own.
        multiple: What the lengths of the vectors are multiples of, by zeros at their ends.

    Attributes:
        first: Number of these vectors; they come first.
        spreads: How each vector is spread.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        first: int = 0,
        every: bool = False,
        spreads: Sequence[Spread] = (),
        multiple: int = 1,
    ) -> None:
        self._parameters = parameters
        self._multiple = multiple
        self._given = set(range(len(parameters))) if every else set()
        # A gradient has the memory format of its parameter; in this order of its dimensions it is contiguous.
        self._orders = [_order(parameter) for parameter in parameters]
        self._strides = [
            parameter.stride() if order or parameter.is_contiguous() else None
            for parameter, order in zip(parameters, self._orders, strict=True)
        ]
        self._places: list[list[int]] = []
        open_vectors: dict[object, list[int]] = {}
        length: dict[object, int] = {}
        for place, parameter in enumerate(parameters):
            kind = parameter.device, parameter.dtype, place < first, spreads and spreads[place]
            if kind not in open_vectors or length[kind] + parameter.numel() > LIMIT:
                open_vectors[kind], length[kind] = [], 0
                self._places.append(open_vectors[kind])
            open_vectors[kind].append(place)
            length[kind] += parameter.numel()
        self.first = sum(places[0] < first for places in self._places)
        self.spreads = [spreads[places[0]] for places in self._places] if spreads else []

    def packed(self, gradients: list[Tensor | None]) -> list[Tensor]:
        """Return the vectors, zero where there is no gradient; the list is emptied on the way, for memory."""
        vectors = []
        for places in self._places:
            found = []
            for k in places:
                gradient, gradients[k] = gradients[k], None
                if gradient is None:
                    found.append(torch.zeros_like(self._parameters[k]))
                else:
                    self._given.add(k)
                    found.append(gradient)
            found = [self._ordered(k, gradient) for k, gradient in zip(places, found, strict=True)]
            if rest := -sum(gradient.numel() for gradient in found) % self._multiple:
                found.append(found[0].new_zeros(rest))
            vector = _flatten_dense_tensors(found)
            vectors.append(vector.to(torch.promote_types(vector.dtype, torch.float32)))
        return vectors

    def unpacked(self, vectors: Sequence[Tensor]) -> list[Tensor | None]:
        """Return gradients of the parameters' types as views of vectors, None where none of those packed had one."""
        gradients: list[Tensor | None] = [None] * len(self._parameters)
        for places, vector in zip(self._places, vectors, strict=True):
            like = [self._ordered(k, self._parameters[k]) for k in places]
            for k, view in zip(places, _unflatten_dense_tensors(vector.to(like[0].dtype), like), strict=True):
                if k in self._given:
                    same = self._strides[k] in (None, view.stride())
                    gradients[k] = view if same else view.as_strided(self._parameters[k].shape, self._strides[k])
        return gradients

    def _ordered(self, place: int, tensor: Tensor) -> Tensor:
        order = self._orders[place]
        return tensor if order is None else tensor.permute(order)


def _order(tensor: Tensor) -> list[int] | None:
    """Dimensions of a tensor from the slowest in memory to the fastest; None where that is their own order, or none."""
    if tensor.is_contiguous():
        return None
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda dimension: -strides[dimension])
    return order if tensor.permute(order).is_contiguous() else None
