"""Write Mini-Cityscapes, drawn streets: ``gh-downstream data make streets``."""

from gh_downstream.cli.main import main

if __name__ == "__main__":
    main("data", "make", "streets")
