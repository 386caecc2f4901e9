"""The command ``gh-downstream compare``."""

from gh_downstream.cli.main import main

if __name__ == "__main__":
    main("compare")
