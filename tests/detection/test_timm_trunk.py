"""Networks of timm as trunks: their maps, what of them is frozen, which cannot be trunks."""

import sys

import pytest

pytest.importorskip("timm", reason="needs pip install 'gh_downstream[pretrained]'")

import timm
import torch

from gh_downstream.detection.timm_trunk import TimmTrunk

LITE0 = "tf_efficientnet_lite0"


@pytest.mark.parametrize("name", [LITE0, "resnet10t", "convnext_atto", "pvt_v2_b0"])
def test_maps_are_those_of_timm_at_four_strides(name):
    torch.manual_seed(0)
    trunk = TimmTrunk(name, maps=("a", "b", "c", "d")).eval()
    torch.manual_seed(0)
    theirs = timm.create_model(name, features_only=True, feature_cls="getter").eval()
    images = torch.rand(2, 3, 64, 100)
    maps, expected = trunk(images), theirs(images)[-4:]
    assert [*maps] == ["a", "b", "c", "d"]
    assert all(torch.equal(ours, level) for ours, level in zip(maps.values(), expected, strict=True))
    assert [level.shape[1] for level in maps.values()] == trunk.channels
    assert [64 // level.shape[2] for level in maps.values()] == [4, 8, 16, 32]


@pytest.mark.parametrize("name", [LITE0, "resnet10t", "regnety_002"])
def test_frozen_normalization_keeps_function_and_activations(name):
    torch.manual_seed(0)
    live = TimmTrunk(name)
    for _ in range(2):
        live(torch.rand(4, 3, 64, 64))
    frozen = TimmTrunk(name, frozen_norm=True)
    missing = frozen.load_state_dict(live.state_dict(), strict=False)
    assert not missing.missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.unexpected_keys)
    images, before = torch.rand(2, 3, 64, 64), {key: value.clone() for key, value in frozen.state_dict().items()}
    torch.testing.assert_close(frozen.train()(images), live.eval()(images), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())


@pytest.mark.parametrize("name", [LITE0, "resnet10t", "convnext_atto"])
def test_frozen_layers_are_those_up_to_a_stride(name):
    for layers in range(6):
        trunk = TimmTrunk(name, layers)
        images = torch.rand(1, 3, 64, 64)
        trained = [level.requires_grad for level in trunk(images).values()]
        assert trained == [2**layers < stride for stride in (4, 8, 16, 32)]
        assert layers == 0 or not next(trunk.parameters()).requires_grad or name == "convnext_atto"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tf_efficientnet_lite9", r"unknown backbone 'tf_efficientnet_lite9': timm has tf_efficientnet_lite"),
        ("ours", "unknown backbone 'ours': timm has none like it"),
        ("vit_tiny_patch16_224", r"at strides \[16, 16, 16\], of one size of images alone; a detector needs 4, 8"),
        ("swin_tiny_patch4_window7_224", r"at strides \[4, 8, 16, 32\], of one size of images alone"),
    ],
)
def test_what_cannot_be_a_trunk_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        TimmTrunk(name)


def test_without_timm_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"backbone resnet10t: .* pip install 'gh_downstream\[pretrained\]'"):
        TimmTrunk("resnet10t")
