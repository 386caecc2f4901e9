"""Find images by a text: ``gh-downstream search``."""

import sys

from gh_downstream.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["search", *sys.argv[1:]]))
