"""Images that a training does without: counted over all processes, named in the log, kept over a restart."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from gh_downstream.data.skipped import SkippedImages
from gh_downstream.training import Callback

logger = logging.getLogger(__name__)


class SkippedImagesCallback(Callback):
    """Counts what the batches' entry ``skipped`` names; the metrics have the number as ``skipped_images``.

    Args:
        skipped: Counts each image once, and refuses too many of them.
    """

    def __init__(self, skipped: SkippedImages) -> None:
        self.skipped = skipped
        self._lately: list[dict[str, dict[str, str]]] = []

    def on_batch(self, batch: dict[str, Any]) -> None:
        """Take the entry, to be counted at the end of the step."""
        self._lately.append(batch.pop("skipped", {}))

    def on_step_end(self, due: bool) -> None:
        """Count what was skipped lately, of all processes together, so that all stop before the main one saves.

        Raises:
            ValueError: Too many images had to be skipped.
        """
        state = PartialState()
        if not due and state.num_processes > 1:
            return
        lately, self._lately = self._lately, []
        for found in gather_object(lately):
            for dataset, faults in found.items():
                for image, fault in faults.items():
                    if self.skipped.add(dataset, image, fault) and state.is_main_process:
                        logger.warning(
                            "%s: another image takes the place of one that cannot be read: %s", dataset, fault
                        )

    def metrics(self) -> Mapping[str, float]:
        """Return the number of images."""
        return {"skipped_images": len(self.skipped)}

    def state_dict(self) -> dict[str, Any]:
        """Return what was found."""
        return {"found": self.skipped.found}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.skipped.found = state["found"]
