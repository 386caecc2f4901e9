"""Train with and without GH on small data that this package draws, and write reports; call again to resume.

Detection on foggy streets, then image-text retrieval on mini-scenes; OUTPUT/report.html links the report of each.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gh_downstream.reporting import Table

ROOT = Path(__file__).resolve().parent.parent
HALVES = ("detection", "retrieval")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=HALVES, help="run one half alone")
    parser.add_argument(
        "--engine", choices=["detectron2", "torchvision"], help="who trains detectors (Detectron2 if importable)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs/demo"),
        help="folder of the engines' folders; retrieval takes the one beside it, OUTPUT-retrieval (%(default)s)",
    )
    parser.add_argument("--datasets", type=Path, default=Path("datasets"), help="folder of the data (%(default)s)")
    parser.add_argument("--seeds", type=int, help="number of seeds (1 of detection, 3 of retrieval)")
    parser.add_argument("--jobs", type=int, help="trainings at a time (the number of cores)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    halves = HALVES if arguments.only is None else (arguments.only,)
    try:
        from gh_downstream.reporting.html import Link, Section, write_report

        sections = []
        for half in halves:
            run = {"detection": _detection, "retrieval": _retrieval}[half]
            title, table, report = run(arguments)
            table.show()
            print(f"report: {report}\n")
            href = Path(os.path.relpath(report, arguments.output)).as_posix()
            sections.append(Section(title, [table, Link("The whole report", href)]))
        if len(sections) > 1:
            write_report(arguments.output / "report.html", "Gradient Harmonization, the demo", sections)
            print(f"both: {arguments.output / 'report.html'}")
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _detection(arguments: argparse.Namespace) -> tuple[str, "Table", Path]:
    from gh_downstream.detection.demo import choose_engine, run_demo

    engine = choose_engine(arguments.engine)
    streets, configs = arguments.datasets / "mini_cityscapes", ROOT / "configs" / "detection"
    table = run_demo(engine, configs, streets, arguments.output, arguments.seeds or 1, arguments.jobs)
    return "Detection on small foggy streets", table, arguments.output / engine / "report.html"


def _retrieval(arguments: argparse.Namespace) -> tuple[str, "Table", Path]:
    from gh_downstream.retrieval.demo import run_demo

    output = arguments.output.with_name(f"{arguments.output.name}-retrieval")
    scenes, configs = arguments.datasets / "mini_scenes", ROOT / "configs" / "retrieval"
    table = run_demo(configs, scenes, output, arguments.seeds or 3, arguments.jobs)
    return "Image-text retrieval on mini-scenes", table, output / "report.html"


if __name__ == "__main__":
    sys.exit(main())
