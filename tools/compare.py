"""The command ``gh-downstream compare``."""

import sys

from gh_downstream.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["compare", *sys.argv[1:]]))
