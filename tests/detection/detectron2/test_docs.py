"""docs/detection.md names what there is."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog

from gh_downstream.detection.detectron2 import add_adaptation_config
from gh_downstream.detection.detectron2.data import register_datasets
from gh_downstream.integrations.detectron2 import add_gh_config
from tests.integrations.detectron2 import toy_detectors as common_detectors  # noqa: F401  # skips where there is no Detectron2

TEXT = (Path(__file__).parents[3] / "docs" / "detection.md").read_text()


def keys(node, prefix=""):
    for name, value in node.items():
        yield from keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [f"{prefix}{name}"]


def own_keys():
    cfg = get_cfg()
    before = set(keys(cfg))
    add_gh_config(cfg)
    add_adaptation_config(cfg)
    return sorted(set(keys(cfg)) - before)


@pytest.mark.parametrize("key", own_keys())
def test_every_key_of_the_configuration_is_explained(key):
    assert f"| `{key}` |" in TEXT


def test_every_kind_of_data_set_is_named():
    register_datasets()
    for kind in ("sim10k_car", "kitti_car", "bdd100k_daytime", "cityscapes_bdd", "cityscapes_car"):
        assert f"{kind}_train" in DatasetCatalog
        assert f"`{kind}_" in TEXT
