"""VGG16 as backbone and box head, with the weights of torchvision's."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from torch import nn
from torchvision.models import vgg16

from gh_downstream.detection.detectron2 import VGG16, VGG16BoxHead
from tests.detection.detectron2.adaptive_models import built, cfg_of, losses_of, source, target


@pytest.fixture(scope="module")
def network():
    """torchvision's VGG16 at random, as narrow behind the convolutions as the slim box head."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = vgg16(weights=None)
    network.features.to_empty(device="cpu")
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    network.classifier[0] = nn.Linear(512 * 7 * 7, 16)
    network.classifier[3] = nn.Linear(16, 16)
    network.classifier[6] = nn.Linear(16, 10)
    return network.eval()


@pytest.mark.parametrize("architecture", ["DomainAdaptiveRCNN", "GeneralizedRCNN"])
def test_the_weights_of_torchvision_load(network, tmp_path, architecture):
    path = tmp_path / "vgg16-397923af.pth"
    torch.save(network.state_dict(), path)
    model = built(cfg_of("vgg"), architecture)
    discriminators = {name: p.clone() for name, p in model.named_parameters() if name.startswith("alignment.")}
    DetectionCheckpointer(model).load(f"{path}?matching_heuristics=True")
    state = model.state_dict()
    for name, value in network.state_dict().items():
        ours = f"backbone.{name}" if name.startswith("features.") else f"roi_heads.box_head.{name}"
        assert (ours in state) == (not name.startswith("classifier.6."))
        if ours in state:
            assert torch.equal(state[ours], value), name
    assert all(torch.equal(state[name], value) for name, value in discriminators.items())
    assert bool(discriminators) == (architecture == "DomainAdaptiveRCNN")
    images = torch.randn(2, 3, 40, 56)
    assert torch.equal(model.backbone(images)["vgg5"], network.features[:30](images))
    regions = torch.rand(3, 512, 7, 7)
    expected = network.classifier[:5](regions.flatten(1))
    assert torch.equal(model.roi_heads.box_head.eval()(regions), expected)


def test_names_and_shapes_are_torchvisions_in_full_size():
    with torch.device("meta"):
        backbone, head = VGG16(), VGG16BoxHead(ShapeSpec(channels=512, height=7, width=7))
        expected = {name: value.shape for name, value in vgg16(weights=None).state_dict().items()}
    ours = {name: value.shape for name, value in {**backbone.state_dict(), **head.state_dict()}.items()}
    assert ours == {name: shape for name, shape in expected.items() if not name.startswith("classifier.6.")}
    assert head.output_shape == ShapeSpec(channels=4096)


def test_outputs_are_the_ends_of_the_blocks(network):
    names = ["vgg1", "vgg2", "vgg3", "vgg4", "vgg5"]
    backbone = VGG16(names)
    backbone.load_state_dict(network.features.state_dict(prefix="features."))
    images = torch.randn(1, 3, 32, 48)
    maps, shapes = backbone(images), backbone.output_shape()
    for name, end, stride in zip(names, (4, 9, 16, 23, 30), (1, 2, 4, 8, 16), strict=True):
        assert torch.equal(maps[name], network.features[:end](images))
        assert maps[name].shape == (1, shapes[name].channels, 32 // stride, 48 // stride)
        assert shapes[name].stride == stride


def test_what_lies_behind_the_last_output_is_not_built():
    backbone = VGG16(["vgg3", "vgg1"])
    assert list(backbone.output_shape()) == list(backbone(torch.zeros(1, 3, 32, 32))) == ["vgg1", "vgg3"]
    assert len([layer for layer in backbone.features if isinstance(layer, nn.Conv2d)]) == 7
    for wrong in (["vgg6"], []):
        with pytest.raises(ValueError, match=r"MODEL.VGG.OUT_FEATURES\) are vgg1, vgg2, vgg3, vgg4, vgg5"):
            VGG16(wrong)


@pytest.mark.parametrize(("blocks", "trained"), [(0, 13), (2, 9), (5, 0)])
def test_frozen_blocks_count_from_the_image(blocks, trained):
    layers = [layer for layer in VGG16(freeze_at=blocks).features if isinstance(layer, nn.Conv2d)]
    assert [layer.weight.requires_grad for layer in layers] == [False] * (13 - trained) + [True] * trained
    assert all(layer.weight.requires_grad == layer.bias.requires_grad for layer in layers)


def test_it_trains_with_dropout_and_without_it_evaluates():
    model = built(cfg_of("vgg"))
    frozen = model.backbone.features[0].weight.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.001)
    losses = losses_of(model, source(1) + target(1))
    sum(losses.values()).backward()
    optimizer.step()
    assert torch.equal(model.backbone.features[0].weight, frozen)
    assert model.backbone.features[10].weight.grad.count_nonzero()
    regions = torch.rand(4, 512, 7, 7)
    head = model.roi_heads.box_head
    assert not torch.equal(head(regions), head(regions))
    assert torch.equal(head.eval()(regions), head(regions))
    assert head(regions[:0]).shape == (0, 16)
