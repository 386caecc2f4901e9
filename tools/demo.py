"""Train a detector with and without GH on small foggy streets, and write a report; call again to resume."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--engine", choices=["detectron2", "torchvision"], help="who trains (Detectron2 where it can be imported)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/demo"), help="folder of the engines' folders (%(default)s)"
    )
    parser.add_argument("--data", type=Path, default=Path("datasets/mini_cityscapes"), help="the streets (%(default)s)")
    parser.add_argument(
        "--seeds", type=int, default=1, help="number of seeds; more of them give a spread (%(default)s)"
    )
    parser.add_argument("--jobs", type=int, help="trainings at a time (the number of cores)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        from gh_downstream.detection.demo import choose_engine, run_demo

        engine = choose_engine(arguments.engine)
        configs = root / "configs" / "detection"
        table = run_demo(engine, configs, arguments.data, arguments.output, arguments.seeds, arguments.jobs)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table.show()
    print(f"report: {arguments.output / engine / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
