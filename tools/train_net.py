"""Train or evaluate a domain-adaptive detector of Detectron2, with Detectron2's own command line.

python tools/train_net.py --config-file configs/detection/mini/da.yaml --resume GH.WEIGHTING gh++
"""

import argparse
import sys
from collections.abc import Sequence


def work(arguments: argparse.Namespace) -> None:
    """What each process does."""
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    from gh_downstream.detection.detectron2.trainer import evaluate, load_cfg, train

    try:
        cfg = load_cfg(arguments.config_file, arguments.opts)
        default_setup(cfg, arguments)
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="gh_downstream")
        (evaluate if arguments.eval_only else train)(cfg, arguments.resume)
        comm.synchronize()  # a process that is gone takes the connections of the others with it
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        import gh_downstream.detection.detectron2  # noqa: F401  # says what to install where Detectron2 is missing
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from detectron2.engine import default_argument_parser, launch
    from torch.multiprocessing import ProcessExitedException

    arguments = default_argument_parser(__doc__).parse_args(argv)
    try:
        launch(
            work,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(arguments,),
        )
    except ProcessExitedException as error:  # it has said why
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
