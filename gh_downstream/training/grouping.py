"""Which losses are harmonized as one: groups by name, in place of the sides of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor


def group_losses(losses: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Tensor]]:
    """Divide losses into groups.

    Args:
        losses: Losses by name.
        groups: Names or wildcards of losses by group.

    Returns:
        The losses of each group by name, the groups sorted by name.

    Raises:
        ValueError: A loss belongs to no group or to several, or a pattern fits no loss.
    """
    there = f"the losses are {', '.join(losses)}"
    for group, patterns in groups.items():
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in losses):
                raise ValueError(f"harmonization.groups.{group}: {pattern!r} fits no loss; {there}")
    grouped: dict[str, dict[str, Tensor]] = {group: {} for group in sorted(groups)}
    for name, loss in losses.items():
        owners = [group for group in grouped if any(fnmatchcase(name, pattern) for pattern in groups[group])]
        if len(owners) != 1:
            found = f"the groups {' and '.join(owners)}" if owners else f"none of the groups {', '.join(grouped)}"
            raise ValueError(f"harmonization.groups: every loss belongs to one group, but {name} to {found}")
        grouped[owners[0]][name] = loss
    return grouped
