"""Train or evaluate a domain-adaptive detector of Detectron2, with Detectron2's own command line.

python tools/train_net.py --config-file configs/detection/mini/da.yaml --resume GH.WEIGHTING gh++
"""

import argparse
from collections.abc import Sequence

from gh_downstream.cli.main import one_line_errors


def main(argv: Sequence[str]) -> int:
    """Run Detectron2's command line; returns the exit code, and a process that ends after a mistake has said why."""
    with one_line_errors():
        import gh_downstream.detection.detectron2  # noqa: F401  # says what to install where there is no Detectron2
    from detectron2.engine import default_argument_parser, launch
    from torch.multiprocessing import ProcessExitedException

    arguments = default_argument_parser(__doc__).parse_args(argv)
    machines = {name: getattr(arguments, name) for name in ("num_machines", "machine_rank", "dist_url")}
    try:
        launch(_work_in_process, arguments.num_gpus, **machines, args=(arguments,))
    except ProcessExitedException as error:
        return error.exit_code
    return 0


def _work_in_process(arguments: argparse.Namespace) -> None:
    with one_line_errors():
        from gh_downstream.detection.detectron2.trainer import work

        work(arguments)
