"""Make fog from the disparity and camera files of Cityscapes: ``gh-downstream data fog``."""

import sys

from gh_downstream.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["data", "fog", *sys.argv[1:]]))
