"""Which entry of a model's loss dictionary belongs to which task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor


def group_losses(losses: Mapping[str, Tensor], tasks: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """Sum the losses of each task.

    Args:
        losses: Scalar losses by key, as a Detectron2 model returns them.
        tasks: Regular expressions by task; the task without any takes the losses that match none.

    Returns:
        A scalar for each task, in the order of ``tasks``.

    Raises:
        ValueError: A pattern matches no loss, a task has no loss, or a loss belongs to no task or to several.
    """
    there = f"the losses are {', '.join(losses)}"
    owners: dict[str, list[str]] = {key: [] for key in losses}
    for task, patterns in tasks.items():
        for pattern in patterns:
            matched = [key for key in losses if re.search(pattern, key)]
            if not matched:
                raise ValueError(f"pattern {pattern!r} of task {task} (GH.TASKS) matches no loss; {there}")
            for key in matched:
                owners[key] = [*owners[key], task] if task not in owners[key] else owners[key]
    rest = next((task for task, patterns in tasks.items() if not patterns), None)
    for key, found in owners.items():
        if len(found) > 1:
            raise ValueError(f"loss {key!r} matches patterns of the tasks {' and '.join(found)} (GH.TASKS)")
        if not found and rest is None:
            raise ValueError(f"loss {key!r} matches no pattern of any task (GH.TASKS); {there}")
    of = {key: found[0] if found else rest for key, found in owners.items()}
    grouped = {task: [losses[key] for key in losses if of[key] == task] for task in tasks}
    if rest is not None and not grouped[rest]:
        raise ValueError(f"no loss is left for task {rest} (GH.TASKS); {there}")
    return {task: sum(values[1:], values[0]) for task, values in grouped.items()}
