"""Write mini-scenes: captioned drawings of coloured shapes, in a clear and a tinted domain."""

from __future__ import annotations

import argparse
import logging
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("root", help="folder to write to: new, empty, or an earlier tree of the same arguments")
    parser.add_argument("--train", type=int, default=6000, help="number of source training images")
    parser.add_argument("--target", type=int, default=3000, help="number of target training images")
    parser.add_argument("--val", type=int, default=500, help="number of validation images of each domain")
    parser.add_argument("--test", type=int, default=500, help="number of test images of each domain")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        from gh_downstream.retrieval.data.mini_scenes import make_mini_scenes

        make_mini_scenes(**vars(arguments))
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
