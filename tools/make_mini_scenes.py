"""Write mini-scenes, captioned drawings: ``gh-downstream data make scenes``."""

from gh_downstream.cli.main import main

if __name__ == "__main__":
    main("data", "make", "scenes")
