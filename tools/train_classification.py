"""Train an image classifier on one domain for another: ``gh-downstream train --engine classification``."""

import sys

from gh_downstream.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["train", "--engine", "classification", *sys.argv[1:]]))
