"""The evaluator in Detectron2's own loop, against the average precision of the same detections."""

import json
import logging
import math
import shutil

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.engine import hooks
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from gh_downstream.detection.data import CITYSCAPES_CLASSES, load_cityscapes
from gh_downstream.detection.detectron2.config import add_adaptation_config
from gh_downstream.detection.detectron2.data import dataset_of, register_datasets
from gh_downstream.detection.detectron2.evaluation import WITHOUT_EFFECT, APEvaluator, config_hash_of
from gh_downstream.detection.evaluation import RESULTS, evaluate_detections
from gh_downstream.integrations.detectron2 import add_gh_config
from tests.integrations.detectron2 import toy_detectors as common_detectors  # noqa: F401  # skips where there is no Detectron2
from tests.integrations.detectron2.toy_detectors import toy_trainer

CLEAR, FOGGY = "mini_cityscapes_val", "mini_cityscapes_foggy_0.02_val"


@pytest.fixture(scope="module")
def streets(mini_tree, tmp_path_factory):
    """A copy, as reading leaves a cache beside the data."""
    return shutil.copytree(mini_tree, tmp_path_factory.mktemp("streets") / "mini")


@pytest.fixture(autouse=True)
def root(streets, tmp_path, monkeypatch):
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "mini_cityscapes").symlink_to(streets)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    before = dict(DatasetCatalog), dict(MetadataCatalog)
    register_datasets()
    yield folder
    for catalog, content in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        catalog.data.clear()
        catalog.data.update(content)


class Guesser(nn.Module):
    """Detects the objects of a data set, some moved, some missed, some of another class, and some that are not there.

    Its boxes are in pixels of the original image, as those of Detectron2's models are.
    """

    def __init__(self, dataset, blind=()):
        super().__init__()
        self.records = {record["image_id"]: record for record in dataset.records}
        self.classes = len(dataset.classes)
        self.blind = set(blind)

    def forward(self, batch):
        return [{"instances": self.detect(image)} for image in batch]

    def detect(self, image):
        record = self.records[image["image_id"]]
        found = Instances((record["height"], record["width"]))
        boxes, classes = [], []
        generator = torch.Generator().manual_seed(sum(map(ord, str(image["image_id"]))))
        if image["image_id"] not in self.blind:
            for annotation in record["annotations"]:
                x, y, w, h = annotation["bbox"]
                move, luck = torch.rand(2, generator=generator).tolist()
                boxes.append([x + 0.4 * move * w, y, x + w, y + h])
                shift = int(luck > 0.8)
                classes.append((annotation["category_id"] + shift) % self.classes)
            boxes.append([0.0, 0.0, 20.0, 30.0])
            classes.append(0)
        found.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        found.pred_classes = torch.tensor(classes, dtype=torch.int64)
        found.scores = torch.rand(len(boxes), generator=generator)
        return found


def make_cfg(*overrides):
    cfg = get_cfg()
    add_gh_config(cfg)
    add_adaptation_config(cfg)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.merge_from_list(list(overrides))
    return cfg


def run(name, evaluator, model=None):
    loader = build_detection_test_loader(make_cfg("INPUT.MIN_SIZE_TEST", "64"), name)
    return inference_on_dataset(model or Guesser(dataset_of(name)), loader, evaluator)


def written(folder, name):
    return json.loads((folder / "detections" / f"{name}.json").read_text())


def test_metrics_table_and_files_are_those_of_the_detections(tmp_path, capsys):
    results = run(FOGGY, APEvaluator(FOGGY, tmp_path / "run", "0123abc"))
    dataset = dataset_of(FOGGY)
    expected = evaluate_detections(dataset, written(tmp_path / "run", FOGGY))
    assert 5 < expected.ap50 < 95
    metrics = {"AP": expected.ap, "AP50": expected.ap50, "AP75": expected.ap75}
    metrics |= {f"AP50-{name}": expected.ap50_per_class[name] for name in CITYSCAPES_CLASSES}
    assert list(results) == ["bbox"]
    assert results["bbox"] == pytest.approx(metrics, rel=0, abs=0, nan_ok=True)
    assert RESULTS.read(tmp_path / "run")[0][FOGGY].as_dict() == expected.as_dict()
    shown = capsys.readouterr().out
    for text in (*CITYSCAPES_CLASSES, "mAP50", "fog density 0.02", "4 images", "0123abc", f"{expected.ap50:.1f}"):
        assert text in shown
        assert text in (tmp_path / "run" / "results.md").read_text()


def test_boxes_are_those_of_the_model_in_pixels_of_the_original_image(tmp_path):
    run(CLEAR, APEvaluator(CLEAR, tmp_path))
    model = Guesser(dataset_of(CLEAR))
    expected = []
    for record in dataset_of(CLEAR).records:
        found = model.detect(record)
        for (x1, y1, x2, y2), category, score in zip(
            found.pred_boxes.tensor.tolist(), found.pred_classes.tolist(), found.scores.tolist(), strict=True
        ):
            box = [x1, y1, x2 - x1, y2 - y1]
            expected.append(
                {"image_id": record["image_id"], "category_id": category, "bbox": pytest.approx(box), "score": score}
            )
    assert written(tmp_path, CLEAR) == expected


@pytest.mark.parametrize("name", [CLEAR, FOGGY])
def test_detectron2s_own_evaluator_agrees(tmp_path, name):
    ours = run(name, APEvaluator(name))["bbox"]
    coco = COCOEvaluator(
        name, tasks=("bbox",), distributed=False, output_dir=str(tmp_path), use_fast_impl=False, allow_cached_coco=False
    )
    theirs = run(name, coco)["bbox"]
    for metric in ("AP", "AP50", "AP75"):
        assert ours[metric] == pytest.approx(theirs[metric], abs=1e-6)


def test_images_without_detections_count():
    dataset = dataset_of(CLEAR)
    names = [record["image_id"] for record in dataset.records]
    whole = run(CLEAR, APEvaluator(CLEAR))["bbox"]
    half = run(CLEAR, APEvaluator(CLEAR), Guesser(dataset, blind=names[:2]))["bbox"]
    assert 0 < half["AP50"] < whole["AP50"]


def test_a_model_that_finds_nothing_has_an_ap_of_zero(tmp_path):
    dataset = dataset_of(CLEAR)
    blind = Guesser(dataset, blind=[record["image_id"] for record in dataset.records])
    results = run(CLEAR, APEvaluator(CLEAR, tmp_path), blind)["bbox"]
    assert (results["AP"], results["AP50"], results["AP75"]) == (0, 0, 0)
    assert written(tmp_path, CLEAR) == []
    assert RESULTS.read(tmp_path)[0][CLEAR].ap50 == 0


def test_several_test_sets_share_the_files(tmp_path):
    for name in (FOGGY, CLEAR):
        run(name, APEvaluator(name, tmp_path, "abc"))
    results, configuration = RESULTS.read(tmp_path)
    assert (list(results), configuration) == ([FOGGY, CLEAR], "abc")
    assert [results[name].fog_density for name in (FOGGY, CLEAR)] == [0.02, None]
    assert (tmp_path / "results.md").read_text().count("mAP50") >= 2


def test_without_an_output_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(CLEAR, APEvaluator(CLEAR))
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_any_registered_data_set(tmp_path, streets):
    """Boxes by their corners, other classes, numbers for ids, an image without objects."""
    dicts = []
    for k, record in enumerate(load_cityscapes(streets, "val").select(["car", "person"]).records):
        annotations = [
            {
                "bbox": BoxMode.convert(annotation["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": annotation["category_id"],
            }
            for annotation in record["annotations"]
            if k
        ]
        dicts.append({**record, "image_id": 100 + k, "annotations": annotations})
    DatasetCatalog.register("theirs", lambda: dicts)
    MetadataCatalog.get("theirs").thing_classes = ["car", "person"]
    results = run("theirs", APEvaluator("theirs", tmp_path))["bbox"]
    assert results.keys() == {"AP", "AP50", "AP75", "AP50-car", "AP50-person"}
    assert 0 < results["AP50"] < 100
    assert results["AP50"] == evaluate_detections(dataset_of("theirs"), written(tmp_path, "theirs")).ap50
    assert {detection["image_id"] for detection in written(tmp_path, "theirs")} == {100, 101, 102, 103}


def test_evaluating_again_starts_anew(tmp_path):
    evaluator = APEvaluator(CLEAR, tmp_path)
    first, second = (run(CLEAR, evaluator)["bbox"] for _ in range(2))
    assert first == pytest.approx(second, rel=0, abs=0, nan_ok=True)


def test_an_image_evaluated_twice_is_refused_and_a_missing_one_is_a_warning(caplog):
    dataset = dataset_of(CLEAR)
    model, evaluator = Guesser(dataset), APEvaluator(CLEAR)
    for record in dataset.records[:3]:
        evaluator.process([record], model([record]))
    with caplog.at_level(logging.WARNING):
        evaluator.evaluate()
    assert "3 of 4 images were evaluated" in caplog.text
    evaluator.process(dataset.records[:1], model(dataset.records[:1]))
    with pytest.raises(ValueError, match=r"1 images of mini_cityscapes_val, such as 'elstow_000000_000019'"):
        evaluator.evaluate()


def test_what_cannot_be_measured_is_refused_before_it_begins():
    with pytest.raises(ValueError, match="did you mean"):
        APEvaluator("mini_cityscapes_va")
    DatasetCatalog.register("bare", lambda: [{"file_name": "a", "image_id": 1, "height": 3, "width": 3}])
    MetadataCatalog.get("bare").thing_classes = ["dog"]
    with pytest.raises(ValueError, match="bare has no labels"):
        APEvaluator("bare")


def test_results_go_through_the_tools_of_detectron2(tmp_path, caplog):
    """EvalHook, BestCheckpointer, the copy-and-paste line, and the check of expected results."""
    trainer = toy_trainer()
    trainer.checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path))
    found = []

    def evaluate():
        found.append(run(CLEAR, DatasetEvaluators([APEvaluator(CLEAR, tmp_path)])))
        return found[-1]

    best = hooks.BestCheckpointer(2, trainer.checkpointer, "bbox/AP50", "max")
    trainer.register_hooks([hooks.EvalHook(2, evaluate), best])
    trainer.train(0, 2)
    assert best.best_metric == found[0]["bbox"]["AP50"]
    assert (tmp_path / "model_best.pth").exists()
    assert trainer.storage.latest()["bbox/AP50-car"][0] == found[0]["bbox"]["AP50-car"]
    with caplog.at_level(logging.INFO):
        print_csv_format(found[0])
    assert "copypaste: AP,AP50,AP75" in caplog.text
    ap50 = found[0]["bbox"]["AP50"]
    cfg = make_cfg("TEST.EXPECTED_RESULTS", f"[['bbox', 'AP50', {ap50}, 0.01]]")
    assert verify_results(cfg, found[0])
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP50", ap50 + 1, 0.01]]
    with pytest.raises(SystemExit):
        verify_results(cfg, found[0])


@pytest.mark.parametrize(
    "override",
    [
        ["OUTPUT_DIR", "elsewhere"],
        ["DATALOADER.NUM_WORKERS", "7"],
        ["TEST.EVAL_PERIOD", "9"],
        ["TEST.EXPECTED_RESULTS", "[['bbox', 'AP50', 30.0, 1.0]]"],
        ["SOLVER.CHECKPOINT_PERIOD", "11"],
        ["GH.LOG_PERIOD", "3"],
        ["VIS_PERIOD", "5"],
        ["CUDNN_BENCHMARK", "True"],
    ],
)
def test_the_hash_does_not_depend_on_what_does_not_change_results(override):
    assert override[0] in WITHOUT_EFFECT
    assert config_hash_of(make_cfg(*override)) == config_hash_of(make_cfg())


def test_the_hash_depends_on_everything_else():
    settings = [
        [],
        ["SEED", "3"],
        ["GH.WEIGHTING", "gh"],
        ["GH.MAX_WEIGHT", "10"],
        ["DA.BURN_IN_ITERS", "7"],
        ["DATASETS.TARGET", "('mini_cityscapes_val',)"],
        ["SOLVER.BASE_LR", "0.5"],
        ["MODEL.WEIGHTS", "x.pth"],
        ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.2"],
        ["TEACHER.ENABLED", "True"],
    ]
    hashes = [config_hash_of(make_cfg(*override)) for override in settings]
    for order in (["ALIGNMENT", "TASK"], ["TASK", "ALIGNMENT"]):
        cfg = make_cfg()
        for task in order:
            cfg.GH.TASKS[task] = []
        settings.append(order)
        hashes.append(config_hash_of(cfg))
    assert len(set(hashes)) == len(settings)
    assert all(len(digits) == 12 and int(digits, 16) >= 0 for digits in hashes)
    frozen = make_cfg()
    frozen.freeze()
    assert config_hash_of(frozen) == hashes[0]
    assert config_hash_of(get_cfg()) != hashes[0]  # a config without our nodes has a hash too


def work(rank, folder):
    register_datasets()
    return run(CLEAR, APEvaluator(CLEAR, folder, "abc"))


def test_processes_measure_together_what_one_measures(ranks, tmp_path):
    expected = run(CLEAR, APEvaluator(CLEAR, tmp_path / "one", "abc"))
    first, second = ranks(work, tmp_path / "two")
    assert first["bbox"] == pytest.approx(expected["bbox"], rel=0, abs=0, nan_ok=True)
    assert not math.isnan(first["bbox"]["AP50"])
    assert second == {}
    assert written(tmp_path / "two", CLEAR) == written(tmp_path / "one", CLEAR)
    results = [RESULTS.read(tmp_path / run)[0][CLEAR].as_dict() for run in ("one", "two")]
    assert results[0] == results[1]
