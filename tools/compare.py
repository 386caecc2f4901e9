"""Compare weightings on the same runs over several seeds, and write a report; call again to resume.

Example: python tools/compare.py --task digits --methods cdan,mcd --weightings sum,gh,gh++,pcgrad --seeds 5
Example: python tools/compare.py --task digits,mnist-usps --lambdas 0:1:0.1
Example: python tools/compare.py --config configs/retrieval/mini.yaml --engine retrieval training.steps=50
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--task",
        type=_names,
        default=["digits"],
        help="digits, mnist-usps, usps-mnist, retrieval, detection; several with commas (%(default)s)",
    )
    what.add_argument("--config", help="any configuration in place of a task")
    parser.add_argument(
        "--engine",
        choices=["classification", "retrieval", "detection"],
        help="what trains --config; detection is the torchvision engine (classification)",
    )
    parser.add_argument("--metric", help="metric of the evaluation of --config, more being better")
    parser.add_argument("--methods", type=_names, default=[], help="baselines such as cdan,mcd (those of the task)")
    weightings = parser.add_mutually_exclusive_group()
    weightings.add_argument(
        "--weightings",
        type=_names,
        default=["sum", "gh", "gh++", "gh++:adaptive"],
        help="sum, gh, gh++, gh++:0.3, gh++:adaptive, gh++:guard, gh++:official, and names of TorchJD such as pcgrad; "
        "differences are to sum (sum,gh,gh++,gh++:adaptive)",
    )
    weightings.add_argument("--lambdas", help="exact GH++ at each lambda in their place, such as 0:1:0.1")
    parser.add_argument("--scope", type=_names, default=["shared"], help="shared, all, or both (shared)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (%(default)s)")
    parser.add_argument(
        "--normalize", action="store_true", help="give every update the length of the plain sum: directions alone"
    )
    parser.add_argument("--steps", type=int, help="steps of every run (those of the configuration)")
    parser.add_argument("--no-source-only", action="store_true", help="leave out the run without a target")
    parser.add_argument("--jobs", type=int, help="trainings at a time (the number of GPUs, or of cores without any)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/compare"), help="folder of the runs and the report (%(default)s)"
    )
    parser.add_argument(
        "--datasets", type=Path, default=Path("datasets"), help="folder of generated data (%(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what to change in every run")
    arguments = parser.parse_args(argv)
    if arguments.config is None and (arguments.engine or arguments.metric):
        parser.error("--engine and --metric belong to --config: a task has its own")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        from gh_downstream.comparison.grid import Grid, train_grid
        from gh_downstream.comparison.report import write_comparison
        from gh_downstream.comparison.tasks import find_task, task_of_config
        from gh_downstream.comparison.weightings import lambda_weightings

        if arguments.config is None:
            tasks = [find_task(name) for name in arguments.task]
        else:
            tasks = [task_of_config(arguments.config, arguments.engine or "classification", arguments.metric)]
        steps = [] if arguments.steps is None else [f"training.steps={arguments.steps}"]
        grid = Grid(
            tasks,
            arguments.weightings if arguments.lambdas is None else lambda_weightings(arguments.lambdas),
            arguments.output,
            ROOT / "configs",
            arguments.datasets,
            baselines=arguments.methods,
            scopes=arguments.scope,
            seeds=arguments.seeds,
            length="sum" if arguments.normalize else "tasks",
            source_only=not arguments.no_source_only,
            overrides=[*steps, *arguments.overrides],
        )
        failed = train_grid(grid, arguments.jobs)
        for table in write_comparison(grid, failed):
            table.show()
            print()
        print(f"report: {grid.output / 'report.html'}")
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if failed else 0


def _names(value: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))


if __name__ == "__main__":
    sys.exit(main())
