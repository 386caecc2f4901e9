"""Measure what harmonization costs a training step: ``gh-downstream benchmark``."""

from gh_downstream.cli.main import main

if __name__ == "__main__":
    main("benchmark")
