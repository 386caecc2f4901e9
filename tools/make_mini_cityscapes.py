"""Write Mini-Cityscapes: drawn streets, clear and foggy, in the layout of Cityscapes."""

from __future__ import annotations

import argparse
import logging
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("root", help="folder to write to: new, empty, or an earlier tree of the same arguments")
    parser.add_argument("--train", type=int, default=400, help="number of training images")
    parser.add_argument("--val", type=int, default=80, help="number of validation images")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    parser.add_argument("--height", type=int, default=128, help="height of the images in pixels")
    parser.add_argument("--width", type=int, default=256, help="width of the images in pixels")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        from gh_downstream.detection.data.mini_cityscapes import make_mini_cityscapes

        make_mini_cityscapes(**vars(arguments))
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
