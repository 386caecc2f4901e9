"""Train a domain-adaptive Faster R-CNN of torchvision: ``gh-downstream train --engine native``."""

from gh_downstream.cli.main import main

if __name__ == "__main__":
    main("train", "--engine", "native")
