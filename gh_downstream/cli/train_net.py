"""Train or evaluate a domain-adaptive detector of Detectron2, with Detectron2's own command line.

python -m gh_downstream.cli.train_net --config-file detection/mini/da --resume GH.WEIGHTING gh++
"""

import argparse
import sys
from collections.abc import Sequence

from gh_downstream.cli.main import one_line_errors


def main(argv: Sequence[str]) -> int:
    """Run Detectron2's command line; returns the exit code, and a process that ends after a mistake has said why."""
    try:
        with one_line_errors():  # says what to install where there is no Detectron2
            from gh_downstream.detection.detectron2.command_line import launch_all
            from gh_downstream.detection.detectron2.trainer import check_arguments

            return launch_all(argv, __doc__, check_arguments, _work_in_process)
    except KeyboardInterrupt:
        return 130


def _work_in_process(arguments: argparse.Namespace) -> None:
    with one_line_errors():
        from gh_downstream.detection.detectron2.trainer import work

        work(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
