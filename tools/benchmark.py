"""Measure what harmonization costs a training step: ``gh-downstream benchmark``."""

import sys

from gh_downstream.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["benchmark", *sys.argv[1:]]))
