"""The command ``gh-downstream``."""

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gh_downstream import __version__
from gh_downstream.data.paths import printable


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """Say an error of the user's, or of the machine's, in one line; with ``debug`` let it pass, with its whole trace.

    Raises:
        SystemExit: With code 2 after a ``ValueError``, ``OSError``, ``RuntimeError`` or ``ImportError``. What else is
            raised is a mistake of this package's, and keeps its trace.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if debug:
            raise
        missing = error.__cause__ if isinstance(error, ImportError) else None  # Which may be what that library needs.
        print(_safe(f"error: {error}{f' ({missing})' if missing else ''}"), file=sys.stderr)
        raise SystemExit(2) from None


def run(argv: Sequence[str]) -> int:
    """Run a command as a user types it.

    Args:
        argv: The words after ``gh-downstream``; ``--debug`` anywhere among them shows the whole trace of an error.

    Returns:
        The exit code: 0; 1 where what was checked is not whole, or a run of several failed; 2 after a mistake, which
        is said in one line on the standard error; 130 after Ctrl-C.
    """
    if [*argv] == ["--version"]:
        print(f"gh-downstream {__version__}")
        return 0
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_SafeFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("gh_downstream").setLevel(logging.INFO)  # open_clip tells each of its steps to the root
    quiet_libraries(bars=sys.stderr.isatty() and not {*argv[:1]} & {"compare", "demo"})  # which write logs alone
    try:
        with one_line_errors(debug="--debug" in argv):
            from gh_downstream.cli.app import UsageError, app, typer  # which needs typer

            words = [word for word in argv if word != "--debug"]
            try:
                return app(words, prog_name="gh-downstream", standalone_mode=False) or 0
            except UsageError as error:
                raise ValueError(error.format_message()) from None
            except typer.Abort:  # what older releases of click make of Ctrl-C
                return 130
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            print(f"error: {stopped.code}", file=sys.stderr)
            return 2
        return stopped.code or 0
    except KeyboardInterrupt:
        return 130


def quiet_libraries(bars: bool = True) -> None:
    """Keep what other libraries show of their own work out of what is said here, in this process and those it starts.

    What is missing of weights is said by this package. What the user has set holds.

    Args:
        bars: Leave bars of progress, which are for terminals.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not bars:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for name in ("torch.utils.cpp_extension", "torch.fx._symbolic_trace"):  # where Detectron2 runs without CUDA
        logging.getLogger(name).setLevel(logging.ERROR)
    # A process that is spawned imports Detectron2 before it gets here; what the variable names are beginnings.
    beginnings = ("`torch.jit.", "torch.meshgrid")
    os.environ.setdefault("PYTHONWARNINGS", ",".join(f"ignore:{beginning}" for beginning in beginnings))
    for beginning in beginnings:
        warnings.filterwarnings("ignore", re.escape(beginning))


class _SafeFormatter(logging.Formatter):
    """What is logged may hold names of files and classes, which come from others."""

    def format(self, record: logging.LogRecord) -> str:
        return _safe(super().format(record))


def _safe(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def main(*words: str) -> None:
    """The entry point; the files in tools/ give the words that they stand for.

    Of several processes one that fails ends at once: what is taken down on the way out might wait for the others.
    """
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    try:
        code = run([*words, *sys.argv[1:]])
    except Exception:
        if not several:
            raise
        traceback.print_exc()
        code = 1
    if several and code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
