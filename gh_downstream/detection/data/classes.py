"""Which classes data sets are about, where their categories differ."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)

Classes = dict[str, tuple[str, ...]]
"""Names of classes in their order, each with the categories of data sets that count as it beside that of its name."""


def parse_classes(value: Any, key: str) -> Classes:
    """Return the classes that a setting names.

    Args:
        value: A list of names and of names with aliases, such as ``[person, {car: [vehicle, automobile]}]``, or one
            mapping from names to aliases.
        key: Its name, for messages.

    Raises:
        ValueError: It is neither, is empty, or has a name twice.
    """
    classes: Classes = {}
    entries = [value] if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    pairs = [pair for entry in entries for pair in (entry.items() if isinstance(entry, Mapping) else [(entry, None)])]
    for name, aliases in pairs:
        listed = aliases if isinstance(aliases, (list, tuple)) else [] if aliases is None else [aliases]
        if not all(isinstance(part, str) and part for part in (name, *listed)):
            pairs = []
            break
        for part in (name, *listed):
            if any(part in (other, *others) for other, others in classes.items()) or [name, *listed].count(part) > 1:
                raise ValueError(f"{key} has {part} twice")
        classes[name] = tuple(listed)
    if not pairs:
        form = "names, or names with aliases, such as [person, {car: [vehicle, automobile]}]"
        raise ValueError(f"{key} takes {form}; got {value!r}")
    return classes


def common_classes(categories: Mapping[str, Sequence[str]], key: str) -> Classes:
    """Return the classes that data sets have in common, in the order of the first, and log those that are left out.

    Args:
        categories: The categories of each data set by its name; none where a target names none, which counts for all.
        key: The setting that says otherwise, for messages.

    Raises:
        ValueError: There are none in common.
    """
    named = {name: found for name, found in categories.items() if found}
    common = [name for name in next(iter(named.values()), ()) if all(name in found for found in named.values())]
    listed = "; ".join(f"{name} has {', '.join(found)}" for name, found in named.items())
    cure = f"{key}, such as [person, {{car: [vehicle, automobile]}}], says which are the same"
    if not common:
        raise ValueError(f"the data sets have no class in common ({listed or 'none names any'}): {cure}")
    if any(set(found) != set(common) for found in named.values()):
        logger.warning("classes in common: %s (%s); %s", ", ".join(common), listed, cure)
    return dict.fromkeys(common, ())
