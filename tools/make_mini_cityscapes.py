"""Write Mini-Cityscapes, drawn streets: ``gh-downstream data make streets``."""

import sys

from gh_downstream.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["data", "make", "streets", *sys.argv[1:]]))
