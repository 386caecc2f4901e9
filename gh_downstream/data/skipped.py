"""Images that cannot be read and are done without: counted, named, and too many of them refused."""

from collections.abc import Mapping, Sequence

_NAMED = 10  # items in a message; the others are counted


class SkippedImages:
    """Counts the images that are done without, each once, up to a share of each data set.

    Args:
        sizes: Number of images of each data set by its name.
        max_skipped: Largest share of a data set that may be skipped, at least 0 and less than 1.

    Attributes:
        found: By data set, what is wrong with each image that was skipped, by its name.
    """

    def __init__(self, sizes: Mapping[str, int], max_skipped: float) -> None:
        self.sizes, self.max_skipped = sizes, max_skipped
        self.found: dict[str, dict[str, str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.found.values()))

    def add(self, dataset: str, image: str, fault: str) -> bool:
        """Count an image by its name, and return whether it is new; ``fault``, what is wrong with it, names it too.

        Raises:
            ValueError: The share is exceeded; the message has a line for each image, up to 10.
        """
        faults = self.found.setdefault(dataset, {})
        new = image not in faults
        faults[image] = fault
        self.check(dataset)
        return new

    def check(self, dataset: str) -> None:
        """Raise the ValueError of :meth:`add` if more of a data set is skipped than may be."""
        faults = self.found.get(dataset, {})
        if len(faults) / self.sizes[dataset] > self.max_skipped:
            raise ValueError(
                f"{dataset}: {len(faults)} of {self.sizes[dataset]} images cannot be read, more than "
                f"max_skipped={self.max_skipped:g} allows; repair them, or remove them from the data:\n"
                f"{listed([*faults.values()])}"
            )


def listed(items: Sequence[str], separator: str = "\n") -> str:
    """The first items of a list, and how many more there are."""
    more = [f"and {len(items) - _NAMED} more"] if len(items) > _NAMED else []
    return separator.join([*items[:_NAMED], *more])
