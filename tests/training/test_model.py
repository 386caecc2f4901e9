"""What the trainer knows of a model: frozen modules keep their statistics."""

import copy

import pytest
import torch
from torch import nn

from gh_downstream.training import AdaptedModel, OptimizerConfig, build_optimizer
from tests.training.toy import Toy, config, trainer


class Layers(AdaptedModel):
    """Every kind of layer that has a mode, in a block that is frozen and in one that is not."""

    def __init__(self):
        super().__init__()
        self.frozen, self.trained = self.block(), self.block()
        self.frozen.requires_grad_(False)
        self.bias_alone = nn.BatchNorm1d(8)
        self.bias_alone.weight.requires_grad_(False)
        self.dropout = nn.Dropout(0.5)

    @staticmethod
    def block():
        attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
        norms = [nn.BatchNorm1d(8), nn.BatchNorm1d(8, affine=False), nn.InstanceNorm1d(8, track_running_stats=True)]
        return nn.Sequential(nn.Linear(8, 8), *norms, nn.Dropout(0.5), attention)


@pytest.mark.parametrize("evaluated", [False, True], ids=["at first", "after an evaluation"])
def test_what_is_frozen_as_a_whole_stays_in_evaluation_mode(evaluated):
    model = Layers()
    if evaluated:
        model.eval()
    assert model.train() is model
    assert not any(module.training for module in model.frozen.modules())
    others = (model, model.bias_alone, model.dropout, *model.trained.modules())
    assert all(module.training for module in others)
    x = torch.randn(8, 8)
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(model.frozen(x), model.frozen(x))
    assert not torch.equal(model.trained(x), model.trained(x))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("trained.") for name in moved)
    model.eval()
    assert not any(module.training for module in model.modules())


def test_a_training_with_evaluations_leaves_the_statistics_of_frozen_layers_alone(tmp_path):
    model = Toy()
    for layer in model.trunk[:3]:
        layer.requires_grad_(False)
    before = copy.deepcopy(model.trunk[:3].state_dict())
    trainer(config(tmp_path, steps=6, ema=0.9), model).run()
    after = torch.load(tmp_path / "last.pt", weights_only=True)
    for part in ("model", "average"):
        for name, value in before.items():
            assert torch.equal(after[part][f"trunk.{name}"], value)


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="nothing is left to train: every parameter is frozen"):
        build_optimizer(OptimizerConfig(), [])
