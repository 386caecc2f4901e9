"""The nodes of domain adaptation in a config, and what they refuse."""

from dataclasses import fields

import pytest
import torch
from detectron2.config import CfgNode, get_cfg

from gh_downstream.detection.alignment import AlignmentConfig
from gh_downstream.detection.detectron2 import add_adaptation_config
from gh_downstream.detection.detectron2.config import alignment_of, override_words
from gh_downstream.detection.detectron2.trainer import load_cfg
from gh_downstream.detection.strong_weak import StrongWeakConfig
from gh_downstream.harmonization import GHPlusPlus, HarmonizationConfig
from gh_downstream.integrations.detectron2 import add_gh_config, settings_of
from gh_downstream.training.configs import find_config, list_configs
from tests.detection.detectron2.adaptive_models import built, cfg_of


def default_cfg():
    cfg = get_cfg()
    add_adaptation_config(cfg)
    return cfg


def test_the_device_is_what_there_is_and_no_configuration_names_one():
    there = "cuda" if torch.cuda.is_available() else "cpu"
    assert there == load_cfg("").MODEL.DEVICE
    shipped = [name for name in list_configs() if name.startswith("detection/") and "/native/" not in name]
    assert len(shipped) > 10
    assert {load_cfg(str(find_config(name))).MODEL.DEVICE for name in shipped} == {there}


@pytest.mark.parametrize(("method", "kind"), [("image_instance", AlignmentConfig), ("strong_weak", StrongWeakConfig)])
def test_every_attribute_of_an_alignment_is_a_key_with_its_default(method, kind):
    cfg = default_cfg()
    assert [key.lower() for key in cfg.DA[method.upper()]] == [field.name for field in fields(kind)]
    cfg.DA.METHOD = method
    assert alignment_of(cfg) == kind()


def test_nothing_of_detectron2_changes():
    cfg, plain = default_cfg(), get_cfg()
    for node, keys in (
        (cfg, ["DA", "TEACHER"]),
        (cfg.MODEL, ["VGG", "TIMM"]),
        (cfg.DATASETS, ["TARGET", "COCO", "CLASSES", "OUTSIDE_ROOT"]),
        (cfg.SOLVER, ["IMS_PER_BATCH_TARGET"]),
    ):
        for key in keys:
            del node[key]
    assert cfg == plain
    assert default_cfg().DA.METHOD == "image_instance"


def test_yaml_layers_and_command_line(tmp_path):
    (tmp_path / "base.yaml").write_text("DA: {METHOD: strong_weak, STRONG_WEAK: {GAMMA: 3.0}, FEATURES: [res2]}\n")
    (tmp_path / "child.yaml").write_text("_BASE_: base.yaml\nDA: {STRONG_WEAK: {LOCAL_WEIGHT: 0.5}}\n")
    cfg = default_cfg()
    cfg.merge_from_file(str(tmp_path / "child.yaml"))
    cfg.merge_from_list(["DA.BURN_IN_ITERS", "100", "DATASETS.COCO", "(('a', 'a.json', 'images'),)"])
    cfg.freeze()
    assert alignment_of(cfg.clone()) == StrongWeakConfig(gamma=3.0, local_weight=0.5)
    assert cfg.DATASETS.COCO == (("a", "a.json", "images"),)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["DA.METHOD", "dann"], r"DA.METHOD is one of none, image_instance, strong_weak, got 'dann'"),
        (["DA.IMAGE_INSTANCE.IMAGE_WEIGHT", -1.0], r"DA.IMAGE_INSTANCE.IMAGE_WEIGHT must be at least 0, got -1.0"),
        (["DA.IMAGE_INSTANCE.IMAGE_WEIGHT", 0.0], r"set DA.IMAGE_INSTANCE.CONSISTENCY_WEIGHT to 0\.0 too"),
        (["DA.METHOD", "strong_weak", "DA.STRONG_WEAK.GAMMA", -1.0], r"DA.STRONG_WEAK.GAMMA must be at least 0"),
    ],
    ids=str,
)
def test_an_unusable_value_is_one_error_that_names_the_key(overrides, message):
    cfg = default_cfg()
    cfg.merge_from_list(overrides)
    with pytest.raises(ValueError, match=message):
        alignment_of(cfg)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["A.B=1", "C", "2", "D=3"], ["A.B", "1", "C", "2", "D", "3"]),
        (["GH.WEIGHTING", "cagrad:c=0.4"], ["GH.WEIGHTING", "cagrad:c=0.4"]),
        (["GH.WEIGHTING=cagrad:c=0.4"], ["GH.WEIGHTING", "cagrad:c=0.4"]),
        (["OUTPUT_DIR", "A.B=1/run", "C="], ["OUTPUT_DIR", "A.B=1/run", "C", ""]),
    ],
    ids=str,
)
def test_overrides_are_words_with_an_equals_sign_or_pairs(overrides, words):
    assert override_words(overrides) == words


@pytest.mark.parametrize(
    "content",
    [
        *(b"_BASE_: 5", b"_BASE_: words.yaml", b"_BASE_: config.yaml", b"just words", b"", b"\xff\xfe", b"- MODEL"),
        *(b"MODEL: 5", b"MODEL: null", b"5: 6"),
    ],
)
def test_a_file_that_is_not_made_of_sections_is_named(tmp_path, content):
    (tmp_path / "words.yaml").write_text("just words")
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.yaml: it, or what its _BASE_ names, is not made of sections"):
        load_cfg(str(tmp_path / "config.yaml"), [])


def test_a_key_without_a_value_is_named():
    with pytest.raises(ValueError, match=r"'SOLVER\.MAX_ITER': expected KEY=VALUE"):
        override_words(["SEED=3", "SOLVER.MAX_ITER"])


def test_what_is_not_used_is_not_checked():
    cfg = default_cfg()
    cfg.merge_from_list(["DA.METHOD", "none", "DA.IMAGE_INSTANCE.IMAGE_WEIGHT", -1.0])
    assert alignment_of(cfg) is None


def test_a_config_without_the_node_says_how_to_add_it():
    with pytest.raises(ValueError, match=r"no node DA: call add_adaptation_config\(cfg\)"):
        alignment_of(get_cfg())
    cfg = cfg_of("vgg")
    del cfg.MODEL["VGG"]
    with pytest.raises(ValueError, match=r"no node MODEL.VGG: call add_adaptation_config\(cfg\)"):
        built(cfg)


def test_a_model_takes_its_arguments_from_the_config():
    cfg = cfg_of("fpn", "DA.BURN_IN_ITERS", 7, "DA.FEATURES", ["p3", "p4"], "TEACHER.LOSS_WEIGHT", 0.5)
    model = built(cfg)
    assert (model.burn_in_iters, model.align_features, model.pseudo_weight) == (7, ("p3", "p4"), 0.5)
    assert model.harmonize_features is None
    assert model.alignment.config == alignment_of(cfg)
    del cfg["GH"]
    assert built(cfg).harmonize_features is None


def test_the_fork_is_built_from_the_harmonization_node():
    cfg = cfg_of("fpn", "GH.MEASURE", "features")
    assert built(cfg).harmonize_features is None  # weighting none
    cfg.merge_from_list(["GH.WEIGHTING", "gh++:adaptive"])
    assert isinstance(built(cfg).harmonize_features, GHPlusPlus)
    cfg.GH.MEASURE = "parameters"
    assert built(cfg).harmonize_features is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SCOPE", "all"),
        ("SHARED", ["backbone"]),
        ("PERIOD", 2),
        ("WARMUP_STEPS", 5),
        ("SYNCHRONIZE", "gramian"),
        ("TASKS", {"ALIGNMENT": ["_da_"], "TASK": []}),
    ],
    ids=str,
)
def test_measuring_features_refuses_what_belongs_to_parameters(key, value):
    cfg = get_cfg()
    add_gh_config(cfg)
    cfg.GH.merge_from_list(["WEIGHTING", "gh", "MEASURE", "features"])
    assert settings_of(cfg).measure == "features"
    cfg.GH.merge_from_other_cfg(CfgNode({key: value}))
    with pytest.raises(ValueError, match=rf"GH.MEASURE=features .* GH.{key} .* GH.MEASURE=parameters"):
        settings_of(cfg)
    cfg.GH.MEASURE = "parameters"
    assert settings_of(cfg).measure == "parameters"


def test_an_unknown_measure_lists_the_choices():
    with pytest.raises(ValueError, match="measure is one of parameters, features, got 'weights'"):
        HarmonizationConfig(weighting="gh", measure="weights")
