"""Trainings of every engine of our own loop, killed at any of their writes; ``python -m tests.kill`` does more."""

import random

import pytest

from tests.kill import ENGINES, EngineRun, kill_and_resume, make_data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.mark.parametrize("name", ENGINES)
def test_killed_at_any_write_it_ends_with_the_same_bits(name, data, tmp_path):
    kill_and_resume(EngineRun(name, data), tmp_path / name, 4, random.Random(name))
