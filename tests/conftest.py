"""Settings of the whole suite."""

from hypothesis import settings

# The same examples in every run, and no deadline: speed is for benchmarks.
settings.register_profile("repository", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("repository")
