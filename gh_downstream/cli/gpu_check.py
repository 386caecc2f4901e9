"""``gh-downstream gpu-check``: what one GPU shows of harmonization."""

from pathlib import Path
from typing import Annotated

import typer


def gpu_check(
    output: Annotated[Path, typer.Option(help="Folder of gpu_check.json and gpu_check.md.")] = Path(
        "outputs/gpu-check"
    ),
    parts: Annotated[str, typer.Option(help="Parts such as versions,launches; all of them by default.")] = "",
    small: Annotated[bool, typer.Option("--small", help="Small sizes: a rehearsal, on a CPU too.")] = False,
    minutes: Annotated[float, typer.Option(help="For all parts together; the last ones are left out.")] = 8.0,
) -> None:
    """Check on a GPU that harmonization is exact, never waits, and what it costs.

    Each part runs in a process of its own with a limit, and takes what is installed. The report is written as it grows,
    and printed; the exit code is 1 where something is wrong.

    \b
    Example: gh-downstream gpu-check --output outputs/gpu-check
    """
    from gh_downstream.gpu_check.running import check_gpu

    right = check_gpu(output, [name for name in parts.split(",") if name], small, minutes)
    print((output / "gpu_check.md").read_text())
    if not right:
        raise typer.Exit(1)
