"""Detectron2's command line: its arguments, and a process for each GPU."""

import argparse
from collections.abc import Callable, Sequence

from detectron2.engine import default_argument_parser, launch
from torch.multiprocessing import ProcessExitedException


def launch_all(argv: Sequence[str], example: str | None, work: Callable[[argparse.Namespace], None]) -> int:
    """Run ``work`` on the arguments in each process that they ask for; return the exit code of the first that fails."""
    arguments = default_argument_parser(example).parse_args(argv)
    machines = {name: getattr(arguments, name) for name in ("num_machines", "machine_rank", "dist_url")}
    try:
        launch(work, arguments.num_gpus, **machines, args=(arguments,))
    except ProcessExitedException as error:
        return error.exit_code
    return 0
