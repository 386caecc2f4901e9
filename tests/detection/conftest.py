import shutil

import pytest

from gh_downstream.detection.data.mini_cityscapes import make_mini_cityscapes


@pytest.fixture(scope="session")
def mini_tree(tmp_path_factory):
    """A small Mini-Cityscapes that tests may read, but not change."""
    root = tmp_path_factory.mktemp("datasets") / "mini"
    make_mini_cityscapes(root, train=8, val=4, seed=3, height=96, width=192)
    return root


@pytest.fixture
def tree(mini_tree, tmp_path):
    """A copy of it for one test."""
    # Without what reading the original may have left there.
    return shutil.copytree(mini_tree, tmp_path / "tree", ignore=shutil.ignore_patterns(".gh_cache"))
