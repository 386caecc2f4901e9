"""Fine-tune an image-text model from one domain for another: ``gh-downstream train --engine retrieval``."""

import sys

from gh_downstream.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["train", "--engine", "retrieval", *sys.argv[1:]]))
