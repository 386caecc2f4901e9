"""Fine-tune an image-text model from one domain for another: ``gh-downstream train --engine retrieval``."""

from gh_downstream.cli.main import main

if __name__ == "__main__":
    main("train", "--engine", "retrieval")
