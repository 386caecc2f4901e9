"""Train or evaluate a domain-adaptive detector of Detectron2, with Detectron2's own command line.

python -m gh_downstream.cli.train_net --config-file detection/mini/da --resume GH.WEIGHTING gh++
"""

import argparse
import sys
from collections.abc import Sequence

from gh_downstream.cli.main import one_line_errors, quiet_libraries


def main(argv: Sequence[str]) -> int:
    """Run Detectron2's command line; returns the exit code, and a process that ends after a mistake has said why."""
    quiet_libraries()
    try:
        with one_line_errors("--debug" in argv):  # says what to install where there is no Detectron2
            from gh_downstream.detection.detectron2.command_line import check_arguments, launch_all

            return launch_all(argv, __doc__, check_arguments, _work_in_process)
    except KeyboardInterrupt:
        return 130


def _work_in_process(arguments: argparse.Namespace) -> None:
    quiet_libraries()
    with one_line_errors(arguments.debug):
        from gh_downstream.detection.detectron2.command_line import work

        work(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
