"""Find images by a text: ``gh-downstream search``."""

from gh_downstream.cli.main import main

if __name__ == "__main__":
    main("search")
