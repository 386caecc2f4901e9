"""What a user's mistake looks like: one line, and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """Say an error of the user's, or of the machine's, in one line.

    Args:
        debug: Let it pass, with its whole trace.

    Raises:
        SystemExit: With code 2 after a ``ValueError``, ``OSError``, ``RuntimeError`` or ``ImportError``. What else is
            raised is a mistake of this package's, and keeps its trace.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
