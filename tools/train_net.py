"""Train or evaluate a domain-adaptive detector of Detectron2, with Detectron2's own command line."""

import sys

from gh_downstream.cli.train_net import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
