"""Mistakes in a configuration of Detectron2, each told before anything begins."""

import math

import pytest
import torch
from detectron2.config import CfgNode

from gh_downstream.detection.detectron2.checks import check_evaluation, check_folder, check_values
from tests.detection.detectron2.adaptive_models import cfg_of
from tests.integrations.detectron2.toy_detectors import toy_cfg  # noqa: F401  # skips where there is no Detectron2

NUMBERS = [
    "SOLVER.BASE_LR",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.GAMMA",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
    "MODEL.RPN.LOSS_WEIGHT",
    "DA.IMAGE_INSTANCE.IMAGE_WEIGHT",
    "DA.IMAGE_INSTANCE.REVERSAL_STRENGTH",
    "DA.STRONG_WEAK.GAMMA",
    "TEACHER.LOSS_WEIGHT",
    "TEACHER.MOMENTUM",
]


def changed(key, value):
    cfg = cfg_of()
    *nodes, name = key.split(".")
    node = cfg
    for part in nodes:
        node = node[part]
    node[name] = value
    return cfg


def test_the_defaults_are_in_their_ranges():
    check_values(cfg_of())
    check_values(cfg_of("retinanet", "DA.METHOD", "strong_weak"))


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_by_its_key(key, value):
    with pytest.raises(ValueError, match=rf"{key} must be finite, got {value}"):
        check_values(changed(key, value))


@pytest.mark.parametrize("key", ["INPUT.MIN_SIZE_TRAIN", "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.RPN.IN_FEATURES"])
def test_an_empty_list_of_what_is_needed_is_refused_by_its_key(key):
    for empty in ((), []):
        with pytest.raises(ValueError, match=rf"^{key} is empty; the default is "):
            check_values(changed(key, empty))
    check_values(changed("SOLVER.STEPS", ()))


def test_words_that_detectron2_only_asserts_are_refused_by_their_keys():
    for key in ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "INPUT.CROP.TYPE"):
        with pytest.raises(ValueError, match=rf"^{key} is one of .*, got 'foo'"):
            check_values(changed(key, "foo"))


@pytest.mark.parametrize("sizes", [(800, 600), (600,), (400, 600, 800)])
def test_a_range_of_sizes_has_two_ends(sizes):
    cfg = changed("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range")
    cfg.INPUT.MIN_SIZE_TRAIN = sizes
    with pytest.raises(
        ValueError, match=r"^INPUT\.MIN_SIZE_TRAIN \(.*\): MIN_SIZE_TRAIN_SAMPLING range takes the least"
    ):
        check_values(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN = (600, 800)
    check_values(cfg)


def test_numbers_of_other_peoples_nodes_are_theirs_but_for_those_that_are_not_finite():
    cfg = cfg_of()
    cfg.THEIRS = CfgNode({"OFFSET": -3, "SIZES": []})
    check_values(cfg)
    cfg.THEIRS.OFFSET = math.nan
    with pytest.raises(ValueError, match=r"^THEIRS\.OFFSET must be finite"):
        check_values(cfg)


def test_the_numbers_in_a_list_count_too():
    with pytest.raises(ValueError, match=r"MODEL\.PIXEL_STD\[1\] must be finite"):
        check_values(changed("MODEL.PIXEL_STD", [1.0, math.nan, 1.0]))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.BASE_LR", 0.0, "above 0"),
        ("SOLVER.MOMENTUM", 1.0, "at least 0 and below 1"),
        ("SOLVER.MAX_ITER", 0, "at least 1"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "at least 1"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", -1.0, "above 0"),
        ("SOLVER.IMS_PER_BATCH_TARGET", -1, "at least 0"),
        ("TEST.EVAL_PERIOD", -3, "at least 0"),
        ("TEST.DETECTIONS_PER_IMAGE", 0, "at least 1"),
        ("INPUT.MAX_SIZE_TRAIN", -5, "at least 1"),
        ("MODEL.BACKBONE.FREEZE_AT", 9, "at least 0 and at most 5"),
        ("INPUT.MAX_SIZE_TEST", 0, "at least 1"),
        ("INPUT.MIN_SIZE_TEST", -1, "at least 0"),
        ("SOLVER.IMS_PER_BATCH", 0, "at least 1"),
        ("SOLVER.NUM_DECAYS", 0, "at least 1"),
        ("SOLVER.BIAS_LR_FACTOR", -1.0, "at least 0"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 0, "at least 1"),
        ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 0, "at least 1"),
        ("MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.5, "at least 0 and at most 1"),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 2.0, "at least 0 and at most 1"),
        ("MODEL.RPN.POST_NMS_TOPK_TRAIN", 0, "at least 1"),
        ("MODEL.RPN.NMS_THRESH", -0.1, "at least 0 and at most 1"),
        ("MODEL.RPN.LOSS_WEIGHT", -1.0, "at least 0"),
        ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 0, "at least 1"),
        ("MODEL.RETINANET.TOPK_CANDIDATES_TEST", 0, "at least 1"),
        ("DATALOADER.NUM_WORKERS", -1, "at least 0"),
        ("TEACHER.MOMENTUM", 1.5, "at least 0 and at most 1"),
        ("TEACHER.LOSS_WEIGHT", -1.0, "at least 0"),
        ("TEACHER.CLASS_THRESHOLDS.car", 1.5, "at least 0 and at most 1"),
        ("DA.BURN_IN_ITERS", -1, "at least 0"),
        ("DA.IMAGE_INSTANCE.IMAGE_HIDDEN", 0, "at least 1"),
        ("GH.LOG_PERIOD", 0, "at least 1"),
        ("GH.PERIOD", 0, "at least 1"),
        ("GH.WARMUP_STEPS", -1, "at least 0"),
        ("GH.MAX_WEIGHT", 0.5, "at least 1"),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_its_key(key, value, message):
    with pytest.raises(ValueError, match=rf"^{key} must be {message}, got {value}"):
        check_values(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.STEPS", (0.8, 0.9), "must be a whole number"),
        ("SOLVER.STEPS", (0, 3), "must be at least 1"),
        ("INPUT.MIN_SIZE_TRAIN", (0.5,), "must be a whole number"),
        ("INPUT.MIN_SIZE_TRAIN", (-600,), "must be at least 0"),
        ("INPUT.MIN_SIZE_TRAIN", ("600",), "must be a number at least 0"),
        ("INPUT.CROP.SIZE", [1.5, 1.0], "must be above 0 and at most 1"),
        ("MODEL.PIXEL_STD", [0.0, 1.0, 1.0], "must be above 0"),
        ("MODEL.RPN.IOU_THRESHOLDS", [-0.3, 0.7], "must be at least 0 and at most 1"),
    ],
)
def test_a_number_of_a_list_out_of_its_range_is_refused_by_its_place(key, value, message):
    with pytest.raises(ValueError, match=rf"^{key}\[0\] {message}, got "):
        check_values(changed(key, value))


@pytest.mark.parametrize(
    ("device", "message"), [("foo", "no such device"), ("", "no such device"), ("cuda:99", r"GPU\(s\) here")]
)
def test_a_device_that_is_not_there_is_refused(device, message):
    with pytest.raises(ValueError, match=rf"^MODEL\.DEVICE {device}: .*{message}"):
        check_values(changed("MODEL.DEVICE", device))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused():
    with pytest.raises(ValueError, match=r"^MODEL\.DEVICE cuda: torch finds 0 GPU\(s\) here; .* cpu"):
        check_values(changed("MODEL.DEVICE", "cuda"))


def test_what_another_training_has_left_is_neither_lost_nor_taken_over(tmp_path):
    cfg = cfg_of("fpn", "OUTPUT_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    check_folder(cfg, resume=False)
    check_folder(cfg, resume=True)  # it begins
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    check_folder(changed("SEED", 3), resume=False)  # died before its first checkpoint
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000001.pth")
    check_folder(cfg, resume=True)
    with pytest.raises(ValueError, match=r"run has the checkpoints of a training: go on with --resume, or choose"):
        check_folder(cfg, resume=False)
    cfg.SEED = 7
    with pytest.raises(ValueError, match=r"belongs to another configuration: SEED was -1 and is 7"):
        check_folder(cfg, resume=True)


def test_random_weights_are_not_evaluated(tmp_path):
    cfg = cfg_of("fpn", "OUTPUT_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is empty"):
        check_evaluation(cfg, resume=False)
    with pytest.raises(FileNotFoundError, match=r"no last_checkpoint to evaluate"):
        check_evaluation(changed("MODEL.WEIGHTS", str(tmp_path / "x.pth")), resume=True)
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS .*x\.pth: there is no such file"):
        check_evaluation(changed("MODEL.WEIGHTS", str(tmp_path / "x.pth")), resume=False)
    (tmp_path / "x.pth").touch()
    cfg = changed("MODEL.WEIGHTS", str(tmp_path / "x.pth"))
    cfg.DATASETS.TEST = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TEST names no data set"):
        check_evaluation(cfg, resume=False)
