"""Make fog from the disparity and camera files of Cityscapes: ``gh-downstream data fog``."""

from gh_downstream.cli.main import main

if __name__ == "__main__":
    main("data", "fog")
