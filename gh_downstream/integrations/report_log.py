"""A log of what a loss measures in its backward pass."""

import logging

import torch.distributed as dist

from gh_downstream.harmonization import Measurements, Report
from gh_downstream.harmonization.checks import check_at_least
from gh_downstream.harmonization.distributed import world_size

logger = logging.getLogger(__name__)


class ReportLog:
    """Logs a line every so many backward passes, in the first process; the ``on_report`` of a loss that has no log.

    The line has cosine, angle (degrees), gain, weights and norms of the last measurement, and the share of conflicts
    since the last line. It goes to the logger of this module with level INFO.

    Args:
        every: Backward passes from one line to the next, at least 1.

    Raises:
        ValueError: ``every`` is below 1.
    """

    def __init__(self, every: int = 100) -> None:
        check_at_least("every", every, 1)
        self.every = every
        self._measurements = Measurements()
        self._count = 0

    def __call__(self, report: Report) -> None:
        """Take a report; only a line reads it from the device."""
        self._measurements.add(report)
        self._count += 1
        if self._count % self.every == 0 and (world_size() == 1 or dist.get_rank() == 0):
            metrics = self._measurements.read()
            figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            logger.info("harmonization, backward pass %d: %s", self._count, figures)
