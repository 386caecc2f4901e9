"""Check that a tree of Cityscapes and Foggy Cityscapes is whole: ``gh-downstream data check``."""

import sys

from gh_downstream.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["data", "check", *sys.argv[1:]]))
