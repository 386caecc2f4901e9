"""Measure what harmonization costs a training step of a detector: time as ratios to the plain step, and extra memory.

Examples:
python tools/benchmark.py --config configs/detection/torchvision/benchmark-r50.yaml --rounds 5 batch_size=2
python tools/benchmark.py --engine detectron2 --config configs/detection/benchmark_R50_FPN.yaml SOLVER.IMS_PER_BATCH 2
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "detection"
SLIM = {"torchvision": CONFIGS / "torchvision" / "mini-gh++.yaml", "detectron2": CONFIGS / "mini" / "da_gh++.yaml"}


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=SLIM, default="torchvision", help="what trains (%(default)s)")
    parser.add_argument("--config", type=Path, help="YAML file of an adaptation (the mini task with GH++)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds, of 4 steps of each variant (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/benchmark"), help="folder of the tables (%(default)s)"
    )
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        help="what to change, as the engine's training takes it: batch_size=4 or SOLVER.IMS_PER_BATCH 4",
    )
    arguments = parser.parse_args(argv)
    config = arguments.config or SLIM[arguments.engine]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        from gh_downstream.detection.datasets.mini_cityscapes import make_mini_cityscapes
        from gh_downstream.training.benchmark import measure_costs

        mini = Path("datasets/mini_cityscapes")
        if not mini.exists():
            make_mini_cityscapes(mini)
        if arguments.engine == "detectron2":
            from gh_downstream.detection.detectron2 import benchmark as detectron2

            build = partial(detectron2.adaptation_steps, str(config), arguments.overrides)
        else:
            from gh_downstream.detection.torchvision import benchmark as torchvision
            from gh_downstream.detection.torchvision.config import DetectionConfig
            from gh_downstream.training import load_config

            build = partial(torchvision.adaptation_steps, load_config(DetectionConfig, config, arguments.overrides))
        costs = measure_costs(build, arguments.rounds)
        table = costs.table("Cost of one adaptation step", shlex.join(["python", "tools/benchmark.py", *argv]))
        name = arguments.output / f"{arguments.engine}-{config.stem}"
        table.write_json(name.with_name(f"{name.name}.json"))
        table.write_markdown(name.with_name(f"{name.name}.md"))
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table.show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
