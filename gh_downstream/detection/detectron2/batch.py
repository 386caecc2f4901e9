"""A training batch of both domains, as one list of Detectron2's dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.structures import Instances

Batch = Sequence[Mapping[str, Any]]


def by_domain(batch: Batch) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Divide a batch into the images of source, and those of target, which have ``"domain": "target"``.

    Raises:
        ValueError: An image has another domain, one of source has no labels, or there is none of source.
    """
    domains: dict[str, list[Mapping[str, Any]]] = {"source": [], "target": []}
    for entry in batch:
        domain = entry.get("domain", "source")
        name = entry.get("file_name", "an image of the batch")
        if domain not in domains:
            raise ValueError(f'{name}: "domain" is source or target, got {domain!r}')
        if domain == "source" and "instances" not in entry:
            raise ValueError(f'{name}: no "instances" to learn from; is it of the target, without "domain": "target"?')
        domains[domain].append(entry)
    if not domains["source"]:
        raise ValueError("a training batch needs images of source")
    return domains["source"], domains["target"]


def pseudo_labels(target: Batch, device: torch.device) -> list[Instances] | None:
    """The labels that a teacher has given to the images of target; None without.

    Raises:
        ValueError: Some of the images have them, and some have not.
    """
    labelled = [x["pseudo_instances"].to(device) for x in target if "pseudo_instances" in x]
    if len(labelled) not in (0, len(target)):
        raise ValueError(
            f'{len(labelled)} of {len(target)} images of target have "pseudo_instances": give all, or none'
        )
    return labelled or None
