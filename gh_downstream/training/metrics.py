"""What a run reports while it goes: JSON lines, TensorBoard, Weights & Biases, and a progress bar."""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

try:
    from tqdm import tqdm
except ImportError as error:
    raise ImportError("training needs tqdm: pip install 'gh_downstream[training]'") from error

from gh_downstream.files import write_atomically
from gh_downstream.reporting import Cell, Table
from gh_downstream.training.stopping import Stopped

logger = logging.getLogger(__name__)


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Read ``metrics.jsonl``: for each line ``step`` and the metrics logged together at that step.

    A last line that a killed run left unfinished is skipped.

    Raises:
        ValueError: Another line cannot be read; the message names the file and the line.
    """
    lines = []
    for number, text in enumerate(Path(path).read_bytes().split(b"\n")[:-1], 1):
        try:
            line = json.loads(text)
            line["step"] = int(line["step"])
        except (KeyError, TypeError, ValueError, RecursionError):
            raise ValueError(f"{path}: line {number} is no line of metrics with a step; remove it") from None
        lines.append(line)
    return lines


def score_of(metrics: Mapping[str, float], best_metric: str) -> float:
    """Return the metric that ``training.best_metric`` names, negative for ``-NAME``; a ``ValueError`` without it."""
    name = best_metric.removeprefix("-")
    if name not in metrics:
        raise ValueError(f"training.best_metric is {best_metric!r}; the evaluation has {', '.join(metrics)}")
    return metrics[name] if name == best_metric else -metrics[name]


def metrics_table(title: str, metrics: Mapping[str, float]) -> Table:
    """Return the metrics of an evaluation, ``DATA SET/METRIC``, as a table with a column for each data set."""
    parts = {name: name.rpartition("/")[::2] for name in metrics}
    sets, names = (list(dict.fromkeys(part[side] for part in parts.values())) for side in (0, 1))
    figures = {part: metrics[name] for name, part in parts.items()}
    rows: list[list[Cell]] = [[name, *(figures.get((of, name), math.nan) for of in sets)] for name in names]
    return Table(title, ["", *sets], rows, digits=2)


def import_wandb() -> Any:
    """Return the module wandb, or raise an ImportError that says how to install it."""
    try:
        import wandb
        from wandb import init  # noqa: F401  # A folder named wandb, as wandb itself makes, is a module too.
    except ImportError as error:
        raise ImportError("training.wandb needs wandb: pip install wandb") from error
    return wandb


def resident_peak() -> int:
    """Return the most bytes of memory that this process has had."""
    import resource  # Absent on Windows.

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class MetricsLog:
    """Writes ``metrics.jsonl`` and TensorBoard's files, and shows the progress.

    The progress is a bar on a terminal. Elsewhere it is a line of the log with each line of metrics, which has the
    steps a second and the time left too, both with the evaluations so far, and the most memory that was taken: that of
    the GPU where there is one.

    A run of Weights & Biases has the configuration as its config and the folder as its name. Its id is kept in
    ``wandb.id``: a resumed training goes on with the run, and gives it the lines of ``metrics.jsonl`` that a killed one
    had not sent; a training from step 0 on is another run. wandb takes each step once, so it keeps what it has of steps
    after ``step``. Its own files are in ``wandb/``, and its environment variables hold. With ``WANDB_MODE=offline``
    each start writes the whole run anew, of which ``wandb sync FOLDER/wandb/latest-run`` sends the last.

    Args:
        folder: Where the files go. What they hold of steps after ``step`` is dropped: it will be written again.
        step: Steps done so far.
        steps: Number of steps of the run.
        wandb: Project of Weights & Biases; None for none.
        config: The configuration, for Weights & Biases.

    Raises:
        ImportError: wandb is asked for, but not installed.
        ValueError: wandb cannot begin, for example because nobody is logged in.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        steps: int,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # Takes seconds.

        path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= step] if path.exists() else []
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._wandb = None if wandb is None else _wandb(wandb, folder, step, config or {}, kept)
        self._began, self._first, self._steps = time.monotonic(), step, steps
        self._bar = tqdm(total=steps, initial=step, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(error)

    def write(
        self, step: int, metrics: Mapping[str, float], shown: Sequence[str] = ("total", "gh/angle", "gh/conflict_rate")
    ) -> None:
        """Write metrics of a step as one line, and show some of them to who is watching.

        Those that are not finite are left out of the files, as JSON has no such numbers.
        """
        self._record(step, metrics)
        figures = {name: f"{metrics[name]:.4g}" for name in shown if name in metrics}
        if self._bar.disable:
            text = "  ".join(f"{name} {value}" for name, value in figures.items())
            logger.info("step %d/%d  %s  (%s)", step, self._steps, text, self._pace(step))
        else:
            self._bar.set_postfix(figures, refresh=False)

    def write_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of an evaluation as one line, and show them as a table, with a column for each data set."""
        self._record(step, metrics)
        text = metrics_table(f"evaluation at step {step}", metrics).to_text().rstrip()
        if self._bar.disable:
            logger.info("%s", text)
        else:
            self._bar.write(text, file=sys.stderr)

    def _pace(self, step: int) -> str:
        seconds, done = time.monotonic() - self._began, step - self._first
        left = timedelta(seconds=round(seconds / max(done, 1) * (self._steps - step)))
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        memory = torch.cuda.max_memory_allocated() if on_gpu else resident_peak()
        return f"{done / max(seconds, 1e-9):.3g} steps/s, {left} left, {memory / 2**30:.1f} GiB"

    def _record(self, step: int, metrics: Mapping[str, float]) -> None:
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        with self._named():
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()
            for name, value in finite.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(finite, step=step)

    def advance(self) -> None:
        """Count a step on the progress bar."""
        self._bar.update()

    def flush(self) -> None:
        """Bring everything to the disk; before a checkpoint, as a resumed run writes the lines after it only."""
        with self._named():
            os.fsync(self._file.fileno())
            self._tensorboard.flush()

    def close(self, error: BaseException | None = None) -> None:
        """Close the files and the bar, after an error or none.

        For Weights & Biases a run has failed then; one that a signal has stopped is preempted, to be gone on with.
        """
        self._bar.close()
        with suppress(OSError) if error else nullcontext():  # A full disk has been complained of.
            self._file.close()
            self._tensorboard.close()
        if self._wandb is None:
            return
        if isinstance(error, Stopped):
            self._wandb.mark_preempting()
        self._wandb.finish(exit_code=error.code if isinstance(error, Stopped) else int(error is not None))

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = error.filename or self._file.name
            raise


def _wandb(
    project: str, folder: Path, step: int, config: Mapping[str, Any], lines: Sequence[Mapping[str, float]]
) -> Any:
    wandb = import_wandb()
    path = folder / "wandb.id"
    known = path.read_text() if step and path.exists() else None
    try:
        run = wandb.init(
            project=project,
            name=str(folder),
            dir=folder,
            id=known,
            resume="allow" if known else None,
            config=dict(config),
            allow_val_change=True,
        )
    except wandb.Error as error:
        message = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"training.wandb: {message}; log in, or set WANDB_MODE=offline") from error
    write_atomically(path, run.id)
    for line in lines:
        if line["step"] >= run.step:
            run.log({name: value for name, value in line.items() if name != "step"}, step=int(line["step"]))
    return run
