"""The command ``gh-downstream``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from gh_downstream.cli.errors import one_line_errors


def run(argv: Sequence[str]) -> int:
    """Run a command as a user types it.

    Args:
        argv: The words after ``gh-downstream``; ``--debug`` anywhere among them shows the whole trace of an error.

    Returns:
        The exit code: 0; 1 where what was checked is not whole, or a run of several failed; 2 after a mistake, which
        is said in one line on the standard error; 130 after Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with one_line_errors(debug="--debug" in argv):
            from gh_downstream.cli.app import app  # which needs typer

            app([word for word in argv if word != "--debug"], prog_name="gh-downstream")
    except SystemExit as stopped:
        return int(stopped.code or 0)
    except KeyboardInterrupt:
        return 130
    return 0


def main() -> None:
    """The entry point."""
    sys.exit(run(sys.argv[1:]))
