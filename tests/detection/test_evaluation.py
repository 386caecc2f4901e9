"""Average precision against values that follow by hand from its definition, and against pycocotools' own summary."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import math
import sys

import numpy as np
import pytest

from gh_downstream.detection.data.records import CITYSCAPES_CLASSES, DetectionDataset, Record
from gh_downstream.detection.evaluation import APResult, Detection, ap_table, evaluate_detections, write_detections

PERSON, CAR = 0, 2


def record(image_id: int | str, *boxes: tuple[int, list[float]], crowd: bool = False) -> Record:
    annotations = [
        {"bbox": box, "category_id": category, "area": box[2] * box[3], "iscrowd": int(crowd)}
        for category, box in boxes
    ]
    return {
        "file_name": f"{image_id}.png",
        "image_id": image_id,
        "height": 128,
        "width": 256,
        "annotations": annotations,  # type: ignore[typeddict-item]
    }


def dataset(*records: Record) -> DetectionDataset:
    return DetectionDataset("street_foggy_val", CITYSCAPES_CLASSES, list(records), fog_density=0.02)


def detection(image_id: int | str, category: int, box: list[float], score: float = 0.9) -> Detection:
    return {"image_id": image_id, "category_id": category, "bbox": box, "score": score}


def random_dataset(seed: int = 0) -> tuple[DetectionDataset, list[Detection]]:
    """Twelve images, and detections that are shifted, missed, doubled and mislabelled objects."""
    generator = np.random.default_rng(seed)
    records: list[Record] = []
    detections: list[Detection] = []
    for image_id in range(12):
        boxes = [
            (int(generator.integers(8)), [*generator.uniform(0, 100, 2), *generator.uniform(5, 60, 2)])
            for _ in range(generator.integers(0, 6))
        ]
        records.append(record(image_id, *boxes))
        for category, box in boxes:
            for _ in range(generator.integers(0, 3)):
                shifted = [value + generator.normal(0, 3) * (index < 2) for index, value in enumerate(box)]
                label = category if generator.random() < 0.8 else int(generator.integers(8))
                detections.append(detection(image_id, label, shifted, generator.random()))
    return dataset(*records), detections


def test_perfect_detections_score_100_and_absent_classes_have_no_ap() -> None:
    data = dataset(record(1, (PERSON, [10, 10, 20, 40])), record(2, (CAR, [50, 60, 40, 20])), record(3))
    found = [detection(1, PERSON, [10, 10, 20, 40]), detection(2, CAR, [50, 60, 40, 20])]
    result = evaluate_detections(data, found)
    assert (result.ap, result.ap50, result.ap75) == pytest.approx((100, 100, 100))
    assert result.ap50_per_class["person"] == pytest.approx(100)
    assert math.isnan(result.ap50_per_class["train"])
    assert list(result.ap50_per_class) == list(CITYSCAPES_CLASSES)
    assert (result.dataset, result.fog_density, result.num_images, result.num_boxes) == (
        "street_foggy_val",
        0.02,
        3,
        2,
    )


def test_a_half_overlapping_box_counts_for_ap50_only() -> None:
    data = dataset(record(1, (CAR, [0, 0, 100, 60])))
    result = evaluate_detections(data, [detection(1, CAR, [0, 0, 60, 60])])  # IoU 0.6: thresholds .50, .55, .60
    assert result.ap50 == pytest.approx(100)
    assert result.ap75 == 0
    assert result.ap == pytest.approx(30)


def test_a_missed_class_halves_the_mean() -> None:
    data = dataset(record(1, (PERSON, [10, 10, 20, 40]), (CAR, [50, 60, 40, 20])))
    result = evaluate_detections(data, [detection(1, CAR, [50, 60, 40, 20])])
    assert result.ap50 == pytest.approx(50)
    assert result.ap50_per_class["person"] == 0


def test_no_detections_score_0() -> None:
    data = dataset(record(1, (CAR, [0, 0, 100, 60])))
    result = evaluate_detections(data, [])
    assert (result.ap, result.ap50, result.ap75, result.ap50_per_class["car"]) == (0, 0, 0, 0)


def test_detections_on_an_image_without_objects_are_false_positives() -> None:
    with_empty = dataset(record(1, (CAR, [0, 0, 100, 60])), record(2))
    found = [detection(1, CAR, [0, 0, 100, 60], score=0.5), detection(2, CAR, [0, 0, 100, 60], score=0.9)]
    assert evaluate_detections(with_empty, found).ap50 == pytest.approx(50)


def test_crowd_regions_neither_count_nor_cost() -> None:
    crowd = record(1, (CAR, [100, 0, 100, 60]), crowd=True)
    single = record(1, (CAR, [0, 0, 50, 60]))
    data = dataset({**single, "annotations": single["annotations"] + crowd["annotations"]})
    found = [detection(1, CAR, [110, 5, 30, 30], 0.95), detection(1, CAR, [0, 0, 50, 60], 0.9)]
    result = evaluate_detections(data, found)
    assert result.num_boxes == 1
    assert result.ap50 == pytest.approx(100)


@pytest.mark.parametrize("names", [range(12), [f"frankfurt_{i:06}" for i in range(12)]])
def test_equals_the_summary_of_pycocotools(names: range | list[str]) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data, found = random_dataset()
    for entry in data.records:
        entry["image_id"] = names[int(entry["image_id"])]
    for box in found:
        box["image_id"] = names[int(box["image_id"])]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = data.to_coco()
        truth.createIndex()
        loaded = truth.loadRes([{**box, "category_id": box["category_id"] + 1} for box in found])
        evaluation = COCOeval(truth, loaded, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    result = evaluate_detections(data, found)
    assert [result.ap, result.ap50, result.ap75] == pytest.approx(list(100 * evaluation.stats[:3]))
    assert 0 < result.ap < result.ap50 < 100


def test_prints_nothing_changes_nothing_and_ignores_the_order(capsys: pytest.CaptureFixture[str]) -> None:
    data, found = random_dataset()
    before = copy.deepcopy((data.records, found))
    result = evaluate_detections(data, found)
    assert (data.records, found) == before
    assert capsys.readouterr() == ("", "")
    assert evaluate_detections(data, found[::-1]).as_dict() == result.as_dict()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"image_id": 7}, "detection 1 on data set 'street_foggy_val': image 7 is not in the data set"),
        ({"category_id": 8}, "category_id 8 is not an index into the 8 classes"),
        ({"category_id": -1}, "category_id -1"),
        ({"bbox": [0, 0, math.nan, 10]}, "four finite numbers"),
        ({"bbox": [0, 0, 10]}, "four finite numbers"),
        ({"bbox": [50, 50, -20, -10]}, "negative size"),
        ({"score": math.inf}, "score inf is not finite"),
    ],
)
def test_a_faulty_detection_is_an_error(fault: dict[str, object], message: str) -> None:
    data = dataset(record(1, (CAR, [0, 0, 100, 60])))
    good = detection(1, CAR, [0, 0, 100, 60])
    with pytest.raises(ValueError, match=message):
        evaluate_detections(data, [good, {**good, **fault}])  # type: ignore[typeddict-item]


def test_a_data_set_without_labels_is_an_error() -> None:
    with pytest.raises(ValueError, match="'street_foggy_val' has no ground-truth box"):
        evaluate_detections(dataset(record(1)), [])


def make_result(offset: float = 0.0) -> APResult:
    per_class = {name: 40.0 + offset + index for index, name in enumerate(CITYSCAPES_CLASSES)}
    per_class["train"] = math.nan
    return APResult("street_foggy_val", 0.02, 80, 512, 20.0 + offset, 43.0 + offset, 15.0 + offset, per_class)


def test_a_result_survives_json() -> None:
    result = make_result()
    text = json.dumps(result.as_dict(), allow_nan=False)
    restored = APResult.from_dict(json.loads(text))
    assert restored.as_dict() == result.as_dict()
    assert math.isnan(restored.ap50_per_class["train"])
    with pytest.raises(ValueError, match="ap75"):
        APResult.from_dict({key: value for key, value in result.as_dict().items() if key != "ap75"})


def test_the_table_states_what_was_measured() -> None:
    table = ap_table({"source-only": make_result(), "oracle": make_result(20)}, config_hash="3f2a91c0")
    text = table.to_text()
    for fact in ("street_foggy_val", "fog density 0.02", "80 images", "512 boxes", "3f2a91c0", "percent"):
        assert fact in text
    assert "deviation" not in text
    assert list(table.columns) == ["model", *CITYSCAPES_CLASSES, "mAP50", "AP75", "AP"]
    assert " ".join(table.formatted_rows()[0]) == ("source-only 40.0 41.0 42.0 43.0 44.0 – 46.0 47.0 43.0 15.0 20.0")


def test_the_table_states_the_spread_over_seeds() -> None:
    seeds = [make_result(offset) for offset in (-2.0, 0.0, 2.0)]
    table = ap_table({"adapted": seeds, "oracle": make_result(20)}, config_hash="3f2a91c0")
    adapted, oracle = table.formatted_rows()
    assert "deviation" in table.to_text()
    assert table.columns[1] == "runs"
    assert adapted[1:3] == ["3", "40.0 ± 2.0"]
    assert adapted[7] == "–"
    assert oracle[1:3] == ["1", "60.0"]


def test_a_table_of_different_data_sets_is_an_error() -> None:
    foggier = dataclasses.replace(make_result(), fog_density=0.01)
    with pytest.raises(ValueError, match=r"'b' is on .*fog density 0\.01"):
        ap_table({"a": make_result(), "b": [make_result(), foggier]}, config_hash="")
    with pytest.raises(ValueError, match="no result for 'b'"):
        ap_table({"a": make_result(), "b": []}, config_hash="")
    with pytest.raises(ValueError, match="no rows"):
        ap_table({}, config_hash="")


def test_without_pycocotools_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ImportError, match=r"pip install 'gh_downstream\[detection\]'"):
        evaluate_detections(*random_dataset())


def test_detections_are_written_in_cocos_format(tmp_path):
    detections = [{"image_id": "a", "category_id": 0, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.1 + 0.2}]
    write_detections(tmp_path / "detections", "foggy", detections)
    assert json.loads((tmp_path / "detections" / "foggy.json").read_text()) == detections
