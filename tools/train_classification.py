"""Train an image classifier on one domain for another: ``gh-downstream train --engine classification``."""

from gh_downstream.cli.main import main

if __name__ == "__main__":
    main("train", "--engine", "classification")
