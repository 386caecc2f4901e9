"""What a run reports while it goes: JSON lines, TensorBoard, and a progress bar."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

try:
    from tqdm import tqdm
except ImportError as error:
    raise ImportError("training needs tqdm: pip install gh_downstream[detection]") from error

from gh_downstream.training.checkpoint import atomic_file

logger = logging.getLogger(__name__)


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Read the lines of ``metrics.jsonl``; a last line that a killed run left unfinished is skipped.

    Args:
        path: The file.

    Returns:
        One dictionary for each line, with ``step`` and the metrics logged together at that step.
    """
    complete = Path(path).read_text().split("\n")[:-1]
    return [json.loads(line) for line in complete]


class MetricsLog:
    """Writes ``metrics.jsonl`` and, where it is installed, TensorBoard's files, and shows the progress.

    The progress is a bar on a terminal, and a plain line of the log with each line of metrics elsewhere.

    Args:
        folder: Where the files go. What they hold of steps after ``step`` is dropped: it will be written again.
        step: Steps done so far.
        steps: Number of steps of the run.
    """

    def __init__(self, folder: Path, step: int, steps: int) -> None:
        path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= step] if path.exists() else []
        with atomic_file(path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a")
        self._tensorboard = _tensorboard(folder / "tensorboard", step)
        self._steps = steps
        self._bar = tqdm(total=steps, initial=step, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics of a step as one line; those that are not finite are left out, as JSON has no such numbers."""
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            for name, value in finite.items():
                self._tensorboard.add_scalar(name, value, step)

    def show(self, step: int, figures: Mapping[str, float]) -> None:
        """Show a few figures of a step to who is watching."""
        shown = {name: f"{value:.4g}" for name, value in figures.items()}
        if self._bar.disable:
            logger.info("step %d/%d  %s", step, self._steps, "  ".join(f"{k} {v}" for k, v in shown.items()))
        else:
            self._bar.set_postfix(shown, refresh=False)

    def advance(self) -> None:
        """Count a step on the progress bar."""
        self._bar.update()

    def flush(self) -> None:
        """Bring everything to the disk; before a checkpoint, as a resumed run writes the lines after it only."""
        os.fsync(self._file.fileno())
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Close the files and the bar."""
        self._bar.close()
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
