"""Write mini-scenes, captioned drawings: ``gh-downstream data make scenes``."""

import sys

from gh_downstream.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["data", "make", "scenes", *sys.argv[1:]]))
