"""Evaluate a checkpoint of any engine: ``gh-downstream evaluate``."""

import sys

from gh_downstream.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["evaluate", *sys.argv[1:]]))
