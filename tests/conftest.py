"""Settings of the whole suite."""

import logging
import os
import signal
from importlib.util import find_spec

import pytest
from hypothesis import settings

from tests.ranks import preload, run_ranks

# Beside a GPU too: trainings are compared bit for bit, and with loops on the CPU. What needs a GPU is marked cuda.
os.environ["ACCELERATE_USE_CPU"] = "true"
# Before any test: the server that processes of later tests are forked from keeps the environment of its first one.
os.environ["WANDB_MODE"] = "offline"
# Before anything imports the hub's library, which reads it once: no test waits for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

# Without Detectron2 these files cannot be imported; test_missing, which is about that, can.
if find_spec("detectron2") is None:
    collect_ignore_glob = ["detection/detectron2/test_*.py", "integrations/detectron2/test_[!m]*.py"]

# The same examples in every run, and no deadline: speed is for benchmarks.
settings.register_profile("repository", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("repository")


@pytest.fixture(scope="session", autouse=True)
def _preloaded():
    """Before the first process: the server it is forked from is started only once."""
    preload()


@pytest.fixture(scope="session")
def ranks():
    """Runs a function in several processes that form a group: :func:`tests.ranks.run_ranks`."""
    return run_ranks


@pytest.fixture(autouse=True)
def _listening():
    """Ctrl-C is heard, which a shell has what it starts in the background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    """Leave the loggers as they were before a test, and before the fixtures of its module and of the session.

    Our command line sets levels; Detectron2 takes the logger it sets up from the root, and its command adds filters;
    open_clip_train adds to the root and sets all levels.
    """
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in root.manager.loggerDict)]
    before = [
        (logger, logger.level, logger.propagate, list(logger.handlers), list(logger.filters)) for logger in loggers
    ]
    result = yield
    for logger, level, propagate, handlers, filters in before:
        logger.setLevel(level)
        logger.propagate = propagate
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.filters = filters
    return result
