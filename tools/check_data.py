"""Check that a tree of Cityscapes and Foggy Cityscapes is whole: ``gh-downstream data check``."""

from gh_downstream.cli.main import main

if __name__ == "__main__":
    main("data", "check")
