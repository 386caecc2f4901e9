import pytest

from gh_downstream.detection.data.mini_cityscapes import make_mini_cityscapes


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    # accelerate keeps the precision of a process's first run, and refuses another.
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """A small Mini-Cityscapes in the usual size."""
    root = tmp_path_factory.mktemp("streets")
    make_mini_cityscapes(root, train=8, val=3)
    return root
