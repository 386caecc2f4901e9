"""The command ``gh-downstream demo``."""

from gh_downstream.cli.main import main

if __name__ == "__main__":
    main("demo")
