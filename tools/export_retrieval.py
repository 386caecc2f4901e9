"""Write the encoder of a checkpoint as its library reads it: ``gh-downstream export``."""

from gh_downstream.cli.main import main

if __name__ == "__main__":
    main("export")
