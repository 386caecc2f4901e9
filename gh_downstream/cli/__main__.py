"""``python -m gh_downstream.cli`` is ``gh-downstream``, for launchers: ``torchrun -m gh_downstream.cli train ...``."""

from gh_downstream.cli.main import main

main()
