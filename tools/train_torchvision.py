"""Train a domain-adaptive Faster R-CNN of torchvision: ``gh-downstream train --engine torchvision``."""

import sys

from gh_downstream.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["train", "--engine", "torchvision", *sys.argv[1:]]))
