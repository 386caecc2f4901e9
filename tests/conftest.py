"""Settings of the whole suite."""

import os

from hypothesis import settings

# Before any test: the server that processes of later tests are forked from keeps the environment of its first one.
os.environ["WANDB_MODE"] = "offline"

# The same examples in every run, and no deadline: speed is for benchmarks.
settings.register_profile("repository", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("repository")
