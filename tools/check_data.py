"""Check that a tree of Cityscapes and Foggy Cityscapes is whole: what is missing, and which archive holds it.

The exit code is 0 where all is there that training and evaluation need, 1 where something is missing or damaged.
Example: python tools/check_data.py datasets/cityscapes
"""

from __future__ import annotations

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder that holds leftImg8bit, leftImg8bit_foggy and gtFine")
    parser.add_argument("--read", action="store_true", help="open every file too, and find those that were cut off")
    arguments = parser.parse_args(argv)
    try:
        from gh_downstream.detection.data.check import check_cityscapes, check_table

        parts = check_cityscapes(arguments.root, arguments.read)
        check_table(arguments.root, parts).show()
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if all(part.whole for part in parts if part.required) else 1


if __name__ == "__main__":
    sys.exit(main())
