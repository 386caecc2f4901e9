"""Gradients at the last checkpoint of a training on Detectron2."""

import pytest
import torch

from gh_downstream.detection.detectron2.trainer import load_cfg, probe, train
from tests.detection.detectron2.test_trainer import CONFIGS, data, lines, overrides  # noqa: F401

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("config", ["da.yaml", "mean-teacher.yaml"])
def test_what_is_measured_is_what_the_training_measures_next(config, tmp_path):
    """From the checkpoint before the last iteration."""
    logged = ("GH.WEIGHTING", "sum", "GH.LOG_PERIOD", "1", "SOLVER.CHECKPOINT_PERIOD", "2", "DA.BURN_IN_ITERS", "0")
    cfg = load_cfg(str(CONFIGS / "mini" / config), overrides(tmp_path, 3, *logged))
    train(cfg)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = probe(cfg, 2)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    norms = [lines(tmp_path)[2][f"gh/norm/{task}"] for task in found.tasks]
    assert found.gramians[0].sum(0).diagonal().sqrt().tolist() == pytest.approx(norms, rel=1e-4)
    assert not torch.equal(found.gramians[0], found.gramians[1])
    assert len(found.layers) > 1


def test_without_a_checkpoint_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="last_checkpoint"):
        probe(load_cfg(str(CONFIGS / "mini" / "da.yaml"), overrides(tmp_path, 3)), 2)
