"""Measure what harmonization costs a training step: time as ratios to the plain step, and memory.

``--engine classification`` measures each method, with FLOPs and numbers of parameters; CDAN, and a method whose
configuration is given, in every way to harmonize, the others in one.

Examples:
python tools/benchmark.py --config configs/detection/torchvision/benchmark-r50.yaml --rounds 5 batch_size=2
python tools/benchmark.py --engine detectron2 --config configs/detection/benchmark_R50-FPN.yaml SOLVER.IMS_PER_BATCH 2
python tools/benchmark.py --engine retrieval --config configs/retrieval/benchmark_ViT-B-32.yaml alignment.mmd.side=both
python tools/benchmark.py --engine classification --rounds 3
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gh_downstream.reporting import Table
    from gh_downstream.training.benchmark import Workload

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
MINI = {
    "torchvision": CONFIGS / "detection" / "torchvision" / "mini.yaml",
    "detectron2": CONFIGS / "detection" / "mini" / "da.yaml",
    "retrieval": CONFIGS / "retrieval" / "mini.yaml",
}


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engine", choices=[*MINI, "classification"], default="torchvision", help="what trains (%(default)s)"
    )
    parser.add_argument("--config", type=Path, help="YAML file (the mini task; the digits)")
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
    command = shlex.join(["python", "tools/benchmark.py", *argv])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if arguments.engine == "classification":
            table = methods_table(arguments.config, arguments.overrides, arguments.rounds, command)
            name = arguments.config.stem if arguments.config else "digits"
        else:
            config = arguments.config or MINI[arguments.engine]
            table = adaptation_table(arguments.engine, config, arguments.overrides, arguments.rounds, command)
            name = config.stem
        for suffix, write in (("json", table.write_json), ("md", table.write_markdown)):
            write(arguments.output / f"{arguments.engine}-{name}.{suffix}")
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table.show()
    return 0


def adaptation_table(engine: str, config: Path, overrides: Sequence[str], rounds: int, command: str) -> Table:
    """Measure the adaptation steps of a configuration."""
    from gh_downstream.training.benchmark import measure_costs

    build = builder(engine, config, overrides)
    make_mini_data(engine)
    return measure_costs(build, rounds).table("Cost of one adaptation step", command)


def methods_table(config: Path | None, overrides: Sequence[str], rounds: int, command: str) -> Table:
    """Measure the steps of one configuration of classification, or of each method on the embedded digits."""
    from gh_downstream.classification.benchmark import VARIANTS, costs_table, measure_method
    from gh_downstream.classification.config import ClassificationConfig
    from gh_downstream.classification.methods import METHODS
    from gh_downstream.training import load_config

    measured = []
    for method in METHODS if config is None else (None,):
        path = config or CONFIGS / "classification" / ("digits-ssrt.yaml" if method == "ssrt" else "digits.yaml")
        chosen = [] if method is None else [f"method={method}", "harmonization.weighting=none"]
        settings = load_config(ClassificationConfig, path, [*chosen, *overrides])
        every_way = config is not None or settings.method == "cdan"
        measured.append(measure_method(settings, rounds, VARIANTS if every_way else VARIANTS[:2]))
    return costs_table(measured, command)


def make_mini_data(engine: str) -> None:
    """Draw what the mini configurations and those for the benchmark train on, where it is missing."""
    if engine == "retrieval":
        from gh_downstream.retrieval.data.mini_scenes import make_mini_scenes

        if not (mini := Path("datasets/mini_scenes")).exists():
            make_mini_scenes(mini)
    else:
        from gh_downstream.detection.data.mini_cityscapes import make_mini_cityscapes

        if not (mini := Path("datasets/mini_cityscapes")).exists():
            make_mini_cityscapes(mini)


def builder(engine: str, config: Path, overrides: Sequence[str]) -> Callable[[], Workload]:
    """Return what makes the workload of an engine."""
    from gh_downstream.training import load_config

    if engine == "detectron2":
        from gh_downstream.detection.detectron2 import benchmark as detectron2

        return partial(detectron2.adaptation_steps, str(config), overrides)
    if engine == "retrieval":
        from gh_downstream.retrieval import benchmark as retrieval
        from gh_downstream.retrieval.config import RetrievalConfig

        return partial(retrieval.adaptation_steps, load_config(RetrievalConfig, config, overrides))
    from gh_downstream.detection.torchvision import benchmark as torchvision
    from gh_downstream.detection.torchvision.config import DetectionConfig

    return partial(torchvision.adaptation_steps, load_config(DetectionConfig, config, overrides))


if __name__ == "__main__":
    sys.exit(main())
