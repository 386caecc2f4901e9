"""Train or evaluate a domain-adaptive detector of Detectron2, with Detectron2's own command line.

python tools/train_net.py --config-file configs/detection/mini/da.yaml --resume GH.WEIGHTING gh++
"""

import argparse
from collections.abc import Sequence

from gh_downstream.cli.main import one_line_errors


def work(arguments: argparse.Namespace) -> None:
    """What each process does with ``config_file``, ``opts``, ``resume`` and ``eval_only`` of Detectron2's arguments."""
    from gh_downstream.detection.detectron2.trainer import evaluate, load_cfg, train

    # After ours, which says what to install where there is no Detectron2.
    from detectron2.engine import default_setup  # isort: skip
    from detectron2.utils import comm  # isort: skip
    from detectron2.utils.logger import setup_logger  # isort: skip

    cfg = load_cfg(arguments.config_file, arguments.opts)
    default_setup(cfg, arguments)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="gh_downstream")
    (evaluate if arguments.eval_only else train)(cfg, arguments.resume)
    comm.synchronize()  # a process that is gone takes the connections of the others with it


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
        work(arguments)
