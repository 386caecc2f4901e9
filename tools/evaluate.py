"""Evaluate a checkpoint of any engine: ``gh-downstream evaluate``."""

from gh_downstream.cli.main import main

if __name__ == "__main__":
    main("evaluate")
