"""Measure what harmonization costs a training step of a detector: time as ratios to the plain step, and extra memory.

Example: python tools/benchmark.py --config configs/detection/torchvision/benchmark-r50.yaml --rounds 5 batch_size=2
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "detection" / "torchvision"


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", type=Path, default=CONFIGS / "mini-gh++.yaml", help="YAML file of an adaptation (mini-gh++.yaml)"
    )
    parser.add_argument("--rounds", type=int, default=10, help="rounds, of 4 steps of each variant (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/benchmark"), help="folder of the tables (%(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what to change, such as batch_size=4")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        from gh_downstream.detection.datasets.mini_cityscapes import make_mini_cityscapes
        from gh_downstream.detection.torchvision.benchmark import adaptation_steps
        from gh_downstream.detection.torchvision.engine import DetectionConfig
        from gh_downstream.training import load_config
        from gh_downstream.training.benchmark import measure_costs

        config = load_config(DetectionConfig, arguments.config, arguments.overrides)
        mini = Path("datasets/mini_cityscapes")
        if Path(config.source.root) == mini and not mini.exists():
            make_mini_cityscapes(mini)
        costs = measure_costs(partial(adaptation_steps, config), arguments.rounds)
        table = costs.table("Cost of one adaptation step", shlex.join(["python", "tools/benchmark.py", *argv]))
        table.write_json(arguments.output / f"{arguments.config.stem}.json")
        table.write_markdown(arguments.output / f"{arguments.config.stem}.md")
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table.show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
