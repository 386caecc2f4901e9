"""Run the parts of the check, each in a process of its own with a limit, and write the report as it grows."""

import contextlib
import json
import logging
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gh_downstream.files import write_atomically
from gh_downstream.gpu_check.setting import LeftOutError, Setting
from gh_downstream.reporting import Table

logger = logging.getLogger(__name__)

PARTS: Mapping[str, tuple[str, float]] = {
    "versions": ("machine:versions", 60),
    "correctness": ("exact:correctness", 60),
    "no-waiting": ("exact:no_waiting", 60),
    "launches": ("timing:launches", 120),
    "loss-scaling": ("exact:loss_scaling", 40),
    "one-rank": ("machine:one_rank", 60),
    "recall": ("machine:recall", 90),
    "tests": ("machine:tests", 60),
    "pairs": ("machine:pairs", 240),
    "detector": ("machine:detector", 240),
    "seeds": ("machine:seeds", 180),
}
"""What is checked, the short ones first: the function of this package, and the seconds after which it is stopped."""


def check_gpu(output: Path, parts: Sequence[str] = (), small: bool = False, minutes: float = 8.0) -> bool:
    """Run parts and write ``gpu_check.json`` and ``gpu_check.md`` after each of them.

    Args:
        output: Folder of the report.
        parts: Names of :data:`PARTS`; all by default.
        small: Sizes for a CPU, to rehearse.
        minutes: For all of them together; what is not reached is left out, and said to be.

    Returns:
        Whether nothing was found wrong, failed or took too long.

    Raises:
        ValueError: There is no part of that name, or no time.
    """
    if unknown := [name for name in parts if name not in PARTS]:
        raise ValueError(f"--parts: there are {', '.join(PARTS)}, got {unknown[0]!r}")
    if not minutes > 0:
        raise ValueError(f"--minutes must be above 0, got {minutes}")
    size = "small" if small else "full"
    end = time.monotonic() + 60 * minutes
    done: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:  # One for all: what a part draws serves the next.
        for name in parts or PARTS:
            began = time.monotonic()
            limit = min(PARTS[name][1], end - began)
            found = (
                _in_process(name, size, limit, folder)
                if limit > 5
                else {"state": "left out", "why": "no time was left"}
            )
            done.append({"name": name, "seconds": round(time.monotonic() - began, 1), **found})
            logger.info(_line(done[-1]))
            write_atomically(output / "gpu_check.json", json.dumps({"size": size, "parts": done}, indent=1) + "\n")
            write_atomically(output / "gpu_check.md", _markdown(size, done))
    return all(part["state"] in ("done", "left out") for part in done)


def _in_process(name: str, size: str, limit: float, folder: str) -> dict[str, Any]:
    result, log = Path(folder, f"{name}.json"), Path(folder, f"{name}.log")
    command = [sys.executable, "-m", __name__, name, str(result), size]
    # Also where this package is not installed but run from its source tree.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    options: dict[str, Any] = {"cwd": folder, "env": os.environ | {"PYTHONPATH": path}, "start_new_session": True}
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file, **options) as process:
        try:
            why = f"its process ended with code {process.wait(limit)}"
        except subprocess.TimeoutExpired:
            why = f"stopped at its limit of {limit:.0f} s"
        finally:  # With whatever it has started.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    found = json.loads(result.read_text()) if result.exists() else {"state": "failed", "tables": [], "markdown": ""}
    if found["state"] not in ("done", "left out"):
        found |= {"why": found.get("why") or why, "log": log.read_text(errors="replace")[-6000:]}
    return found


def run_part(name: str, result: Path, small: bool) -> None:
    """Run a part in this process, and write what it found whenever there is more of it."""
    tables: list[Table] = []

    def write(state: str, why: str = "") -> None:
        shown = {"tables": [t.as_dict() for t in tables], "markdown": "\n".join(t.to_markdown() for t in tables)}
        write_atomically(result, json.dumps({"state": state, "why": why, **shown}))

    try:
        for table in pkgutil.resolve_name(f"gh_downstream.gpu_check.{PARTS[name][0]}")(Setting(small)):
            tables.append(table)
            write("stopped")
        write("done")
    except ModuleNotFoundError as error:
        write("left out", f"needs {error.name}")
    except LeftOutError as reason:
        write("left out", str(reason))
    except Exception as error:
        traceback.print_exc()
        write("failed", f"{type(error).__name__}: {error}")


def _line(part: Mapping[str, Any]) -> str:
    why = f": {part['why']}" if part.get("why") else ""
    return f"{part['name']}: {part['state']}, {part['seconds']} s{why}"


def _markdown(size: str, done: Sequence[Mapping[str, Any]]) -> str:
    blocks = [f"# GPU check ({size})", "", *(f"- {_line(part)}" for part in done)]
    for part in done:
        blocks += [f"\n## {part['name']}\n", part.get("markdown", "")]
        if part.get("log"):
            blocks.append(f"```\n{part['log']}\n```")
    return "\n".join(blocks) + "\n"


if __name__ == "__main__":  # One part, as it is started above.
    run_part(sys.argv[1], Path(sys.argv[2]), small=sys.argv[3] == "small")
