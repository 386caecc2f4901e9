"""Write leftImg8bit_foggy next to the leftImg8bit of a Cityscapes tree, from its disparity and camera files.

Results on Foggy Cityscapes are compared on the published images (leftImg8bit_trainvaltest_foggy.zip), whose depth
was refined; take those where you can.
"""

from __future__ import annotations

import argparse
import logging
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("root", help="folder that holds leftImg8bit, disparity and camera")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], help="splits to make foggy")
    parser.add_argument(
        "--betas", nargs="+", type=float, default=[0.005, 0.01, 0.02], help="densities of the fog in 1/m"
    )
    parser.add_argument(
        "--airlight",
        nargs=3,
        type=float,
        metavar=("R", "G", "B"),
        help="colour of the fog, 0 to 255; without it, estimated from each image",
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        from gh_downstream.detection.data.fog import make_foggy_split

        for split in arguments.splits:
            make_foggy_split(arguments.root, split, arguments.betas, arguments.airlight)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
