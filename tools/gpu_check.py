"""Check harmonization on a GPU: ``gh-downstream gpu-check``."""

from gh_downstream.cli.main import main

if __name__ == "__main__":
    main("gpu-check")
