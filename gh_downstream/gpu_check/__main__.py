"""Runs one part, as :mod:`gh_downstream.gpu_check.running` starts it: its name, file of the result, size."""

import sys
from pathlib import Path

from gh_downstream.gpu_check.running import run_part

if __name__ == "__main__":
    run_part(sys.argv[1], Path(sys.argv[2]), small=sys.argv[3] == "small")
