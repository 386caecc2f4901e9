"""Check harmonization on a GPU: ``gh-downstream gpu-check``."""

import sys

from gh_downstream.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["gpu-check", *sys.argv[1:]]))
