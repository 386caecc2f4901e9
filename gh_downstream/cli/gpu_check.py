"""``gh-downstream gpu-check``: what one GPU shows of harmonization."""

from pathlib import Path
from typing import Annotated

import typer


def gpu_check(
    output: Annotated[Path, typer.Option(help="folder of gpu_check.json and gpu_check.md")] = Path("outputs/gpu-check"),
    parts: Annotated[str, typer.Option(help="parts such as versions,launches; by default all")] = "",
    small: Annotated[bool, typer.Option("--small", help="small sizes, to rehearse it, on a CPU too")] = False,
    minutes: Annotated[float, typer.Option(help="time for all parts together; the last ones are left out")] = 8.0,
) -> None:
    """Check on a GPU that harmonization is exact, never waits, and what it costs.

    Each part runs in a process of its own with a time limit, and uses what is installed. The report is written as it
    grows, and printed at the end. Exits with 1 if something is wrong.

    \b
    Example: gh-downstream gpu-check --output outputs/gpu-check
    """
    from gh_downstream.gpu_check.running import check_gpu

    right = check_gpu(output, [name for name in parts.split(",") if name], small, minutes)
    print((output / "gpu_check.md").read_text())
    if not right:
        raise typer.Exit(1)
