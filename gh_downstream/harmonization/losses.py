"""Which loss belongs to which task: the losses of any trainer, summed by task."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from fnmatch import fnmatchcase

from torch import Tensor

ALIGNMENT_LOSSES = ("*_domain*", "*loss_consistency*", "*_da_*", "*_D_*", "*_d", "*_da")
"""What the alignment's losses are called: by this package, ALDI and MIC (``_da_``), Adaptive Teacher (``_D_``), and
forks of DA Faster R-CNN (``_d``). What a flat dictionary of losses is divided by where nobody says otherwise."""

Losses = Mapping[str, Tensor] | Mapping[str, Mapping[str, Tensor]]
"""Scalars by name; or, as the models of this package return them, by task and by name."""


def named_losses(losses: Losses) -> dict[str, Tensor]:
    """Return the losses by name alone.

    Raises:
        ValueError: There is no loss, or two tasks have losses of one name.
    """
    named: dict[str, Tensor] = {}
    for task, value in losses.items():
        found = value if isinstance(value, Mapping) else {task: value}
        if twice := named.keys() & found.keys():
            raise ValueError(f"two losses are called {min(twice)!r}: give them different names")
        named |= found
    if not named:
        raise ValueError("there is no loss")
    return named


def group_losses(losses: Losses, tasks: Mapping[str, Sequence[str]] | None = None) -> dict[str, Tensor]:
    """Sum the losses of each task.

    Args:
        losses: Scalars.
        tasks: Names or wildcards of losses by task, the alignment first; a task with an empty list takes the losses
            that no pattern fits. None, or no tasks: those by which ``losses`` is nested already, or for a flat
            dictionary the tasks ``alignment``, with the losses that fit :data:`ALIGNMENT_LOSSES`, and ``task``.

    Returns:
        A scalar for each task, in the order of ``tasks``; tasks without a loss are left out where none were given.

    Raises:
        ValueError: A pattern fits no loss, a task has no loss, or a loss belongs to no task or to several.
    """
    named = named_losses(losses)
    return {task: _sum([named[name] for name in names]) for task, names in names_by_task(losses, tasks).items()}


def names_by_task(losses: Losses, tasks: Mapping[str, Sequence[str]] | None = None) -> dict[str, list[str]]:
    """Return the names of the losses of each task, as :func:`group_losses` sums them."""
    if not tasks and any(isinstance(value, Mapping) for value in losses.values()):
        return {task: list(value) for task, value in losses.items() if value}
    named = named_losses(losses)
    if tasks:
        return divide_losses(named, tasks)
    aligned = [name for name in named if any(fnmatchcase(name, pattern) for pattern in ALIGNMENT_LOSSES)]
    if len(aligned) in (0, len(named)):
        raise ValueError(
            f"{'all' if aligned else 'none'} of the losses {', '.join(named)} are called like losses of an alignment: "
            f"say which are, {_such_as({'alignment': [list(named)[-1]], 'task': []})}"
        )
    return divide_losses(named, {"alignment": aligned, "task": []})


def check_tasks(tasks: Mapping[str, Sequence[str]]) -> None:
    """Check tasks before there are losses.

    Raises:
        ValueError: There is one task alone, its patterns are no list, or several take what no pattern fits.
    """
    if len(tasks) == 1:
        raise ValueError(f"tasks takes two or more tasks, got {list(tasks)}")
    for task, patterns in tasks.items():
        if isinstance(patterns, str):
            raise ValueError(f"tasks.{task} takes a list of patterns, got {patterns!r}")
    rest = [task for task, patterns in tasks.items() if not patterns]
    if len(rest) > 1:
        raise ValueError(
            f"tasks: only one can take the losses that no pattern fits, but {' and '.join(rest)} are empty"
        )


def divide_losses(named: Collection[str], tasks: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the names of the losses of each task, by patterns."""
    there = f"the losses are {', '.join(named)}"
    rest = next((task for task, patterns in tasks.items() if not patterns), None)
    for task, patterns in tasks.items():
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in named):
                free = [name for name in named if not _owners(name, tasks)] or [*named]
                meant = max(free, key=lambda name: SequenceMatcher(None, pattern, name).ratio())
                cure = {**tasks, task: [meant if p == pattern else p for p in patterns]}
                raise ValueError(f"tasks.{task}: {pattern!r} fits no loss; {there}; {_such_as(cure)}")
    divided: dict[str, list[str]] = {task: [] for task in tasks}
    for name in named:
        owners = _owners(name, tasks) or ([] if rest is None else [rest])
        if len(owners) != 1:
            found = f"to the tasks {' and '.join(owners)}" if owners else f"to none of the tasks {', '.join(tasks)}"
            such_as = "" if owners else f"; {_such_as({**tasks, list(tasks)[-1]: []})}"
            raise ValueError(f"tasks: every loss belongs to one task, but {name!r} {found}; {there}{such_as}")
        divided[owners[0]].append(name)
    if rest is not None and not divided[rest]:
        raise ValueError(f"tasks.{rest}: no loss is left for it; {there}")
    return divided


def _sum(losses: Iterable[Tensor]) -> Tensor:
    first, *others = losses
    return sum(others, first)


def _owners(name: str, tasks: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks whose patterns a loss fits."""
    return [task for task, patterns in tasks.items() if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _such_as(tasks: Mapping[str, Sequence[str]]) -> str:
    """What to write, as an argument and in YAML: on a command line, Detectron2 takes no new keys."""
    keys = ", ".join(f"{task.upper()}: {list(patterns)}" for task, patterns in tasks.items())
    argument = {task: list(patterns) for task, patterns in tasks.items()}
    return f"such as tasks = {argument} (in the YAML of a Detectron2 config GH: {{TASKS: {{{keys}}}}})"
