"""Write the encoder of a checkpoint as its library reads it: ``gh-downstream export``."""

import sys

from gh_downstream.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["export", *sys.argv[1:]]))
