"""One call for every format."""

from __future__ import annotations

from dataclasses import dataclass

from gh_downstream.classification.data.embedded import DOMAINS, load_embedded
from gh_downstream.classification.data.records import ClassificationDataset

_FORMATS = ("embedded",)
_SPLITS = ("train", "test")


@dataclass
class DataConfig:
    """Which images, and how to read them.

    Attributes:
        format: ``embedded`` (digits that scikit-learn brings, no download).
        path: The file or folder; null for ``embedded``.
        split: ``train`` or ``test``.
        domain: ``source`` or ``target`` of ``embedded``.
    """

    format: str
    path: str | None = None
    split: str = "train"
    domain: str | None = None
    root: str | None = None
    benchmark: str | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (("format", self.format, _FORMATS), ("split", self.split, _SPLITS)):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
        if self.format == "embedded" and self.domain not in DOMAINS:
            raise ValueError(f"format=embedded needs domain={'|'.join(DOMAINS)}; got {self.domain!r}")


def load_dataset(config: DataConfig) -> ClassificationDataset:
    """Read which images and labels there are."""
    if config.format == "embedded" and config.domain is not None:
        return load_embedded(config.domain, config.split)
    raise NotImplementedError(config.format)
