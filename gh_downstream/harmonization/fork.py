"""Harmonize inside one ordinary ``loss.backward()``: at the features, where the branches of a model part."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gh_downstream.harmonization.checks import check_task_names
from gh_downstream.harmonization.distributed import Group, all_reduce_mean, check_group, from_rank_zero, world_size
from gh_downstream.harmonization.gradients import scaled
from gh_downstream.harmonization.gramian import gramian
from gh_downstream.harmonization.report import Report
from gh_downstream.harmonization.weightings import Weighting, guarded
from gh_downstream.harmonization.words import checked_weighting

Nested: TypeAlias = Tensor | Sequence["Nested"] | Mapping[str, "Nested"]
"""A tensor, or any nesting of sequences and mappings of tensors."""

Features = TypeVar("Features", bound=Nested)


def fork(
    features: Features,
    weighting: Weighting | str | None = None,
    tasks: Sequence[str] = ("alignment", "task"),
    on_report: Callable[[Report], None] | None = None,
    process_group: Group = None,
) -> tuple[Features, ...]:
    """Return one copy of the features for each branch; their gradients are harmonized where they meet.

    The forward pass is the identity. In the backward pass the gradients that the branches send are measured jointly
    over all tensors, weighed, and their weighted sum goes on into the trunk::

        for_alignment, for_task = fork(trunk(images))
        loss = task_loss(head(for_task)) + alignment_loss(discriminator(for_alignment))
        loss.backward()

    Features that come in parts are forked at once, so that they are measured as one::

        (maps, target_maps), (task_maps, _) = fork((maps, target_maps))

    This works under any trainer, under ``DistributedDataParallel``, ``torch.amp``, ``torch.compile`` outside the
    compiled module and any activation checkpointing, for the price of a few inner products. The parameters of the
    branches get their ordinary gradients. Fixed loss weights take part in the measurement, as they are in the losses.

    .. warning:: This measures the conflict at the **features**, the paper at the shared **parameters**
        (:class:`~gh_downstream.harmonization.Harmonizer`). It is a different and cheaper algorithm: the cosine at the
        features often has another sign than that at the parameters (agreement of 43 to 73 % in trials on detectors).
        All branches must go through the fork: a loss that takes the features from elsewhere is not harmonized. All
        losses must be in one ``backward`` call: run one by one, each meets nothing, and the result is the plain sum.

    In several processes the Gramian entries are summed over the ranks, which is exact: features of different samples
    live on different ranks. Every rank of the group must then run backward through the fork, once a step: one that does
    not leaves the others waiting for it, until the group's time limit. That cannot be noticed here; a rank that has
    nothing for any branch at a step adds ``0 * for_task.sum()`` to its loss. A rank with something for one branch needs
    nothing.

    Args:
        features: What the trunk hands to the branches: a tensor, or any nesting of sequences and mappings of tensors,
            of any shapes. A tensor that only one branch uses is fine, and so is a branch that sends no gradient.
            Tensors of integers are passed through.
        weighting: Any weighting, or its word; ``"gh++"`` by default. Each call makes that of a word anew: one with a
            state, such as GradVac, has to be an object, made once.
        tasks: Names of the branches, in the order in which they are returned and weighed.
        on_report: Called in the backward pass with a :class:`Report`; it must not synchronize if the step should not.
        process_group: In several processes, the ranks that have other samples each, or other parts of the features;
            all by default. Where tensor parallelism leaves the same features on several ranks, those of data
            parallelism.

    Returns:
        For each task, features of the same structure: tuples as tuples, other sequences as lists, mappings as
        dictionaries. The tensors are views of the originals: an in-place operation on one raises an error of autograd.

    Raises:
        ValueError: There are fewer than two tasks, or the weighting cannot weigh so many, is no word of one, or is the
            word of one with a state.
        TypeError: There is something else than tensors, sequences and mappings in ``features``, or ``weighting`` or
            ``process_group`` is none.
    """
    check_task_names(tasks)
    check_group(process_group)
    weigh = checked_weighting("gh++" if weighting is None else weighting, len(tasks))
    if isinstance(weighting, str) and getattr(weigh, "state_dict", dict)():
        raise ValueError(
            f"weighting {weighting!r} remembers something between steps, and a word is a new one at each call: make it "
            f"once, weighting = gh_downstream.harmonization.parse_weighting({weighting!r}), and give that"
        )
    tensors = list(_tensors(features))
    # What needs no gradient sends none on, and a tensor that is there twice has one gradient: neither may be measured.
    live = {id(tensor): tensor for tensor in tensors if tensor.requires_grad}
    settings = (weigh, tuple(tasks), on_report, process_group)
    outputs = iter(_Fork.apply(settings, *live.values()))
    copies = [{key: next(outputs) for key in live} for _ in tasks]
    return tuple(_like(features, iter([copy.get(id(tensor), tensor) for tensor in tensors])) for copy in copies)


def _tensors(features: Any) -> Iterator[Tensor]:
    """The tensors of a nesting, in order."""
    if isinstance(features, Tensor):
        yield features
    elif isinstance(features, (Mapping, Sequence)) and not isinstance(features, str):
        for part in features.values() if isinstance(features, Mapping) else features:
            yield from _tensors(part)
    else:
        raise TypeError(f"fork takes tensors, and sequences and mappings of them, got {type(features).__name__}")


def _like(features: Any, tensors: Iterator[Tensor]) -> Any:
    """The same nesting of other tensors."""
    if isinstance(features, Tensor):
        return next(tensors)
    if isinstance(features, Mapping):
        return {key: _like(part, tensors) for key, part in features.items()}
    parts = [_like(part, tensors) for part in features]
    return tuple(parts) if isinstance(features, tuple) else parts


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.settings = settings
        # None tells a branch that sends no gradient from one that sends zeros, and costs no memory.
        ctx.set_materialize_grads(False)
        # A view of its own for each output: autograd would merge the branches that get the same object.
        return tuple(tensor.view_as(tensor) for _ in settings[1] for tensor in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *received: Tensor | None) -> tuple[Tensor | None, ...]:
        weighting, tasks, on_report, group = ctx.settings
        n = len(received) // len(tasks)
        gradients = [received[k * n : (k + 1) * n] for k in range(len(tasks))]
        measured = gramian(gradients)
        all_reduce_mean([measured], group)  # The mean over ranks is the sum up to a scale, on which no weight depends.
        weights = from_rank_zero(guarded(weighting, measured), [group] if world_size(group) > 1 else [])
        if on_report is not None:
            on_report(Report(tasks, measured, weights))
        return None, *(_weighted_sum(weights, branches) for branches in zip(*gradients, strict=True))


def _weighted_sum(weights: Tensor, tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Weighted sum of tensors of one shape, in float32 or wider; ``None`` is zero."""
    total: Tensor | None = None
    dtype: torch.dtype | None = None
    for weight, tensor in zip(weights, tensors, strict=True):
        if tensor is not None:
            dtype = tensor.dtype
            term = scaled(tensor.to(torch.promote_types(dtype, torch.float32)), weight)
            total = term if total is None else total.add_(term)
    return None if total is None else total.to(dtype)
