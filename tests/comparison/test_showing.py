"""The demos of detection and retrieval in a few steps: what their runs leave, and what the report shows of them."""

import dataclasses
import json
import re

import pytest

pytest.importorskip("torchvision", reason="needs pip install 'gh_downstream[detection]'")

from gh_downstream.comparison.presets import find_preset
from gh_downstream.comparison.report import write_comparison
from gh_downstream.comparison.results import read_comparison, read_run
from gh_downstream.comparison.runs import Comparison, train_all
from gh_downstream.comparison.showing import recall_summary
from gh_downstream.detection.data.mini_cityscapes import make_mini_cityscapes
from gh_downstream.detection.evaluation import RESULTS
from gh_downstream.reporting import Spread
from gh_downstream.retrieval.data import make_mini_scenes

pytestmark = pytest.mark.slow

TORCHVISION = (
    *("training.steps=3", "training.evaluate_every=2", "training.log_every=1", "training.checkpoint_every=2"),
    *("optimizer.milestones=[]", "detector.min_size=64", "detector.max_size=128"),
)
DETECTRON2 = (
    *("SOLVER.MAX_ITER=3", "SOLVER.STEPS=()", "SOLVER.WARMUP_ITERS=2", "SOLVER.CHECKPOINT_PERIOD=2"),
    *("INPUT.MIN_SIZE_TRAIN=(64,)", "INPUT.MAX_SIZE_TRAIN=128", "INPUT.MIN_SIZE_TEST=64", "INPUT.MAX_SIZE_TEST=128"),
    *("TEST.EVAL_PERIOD=2", "GH.LOG_PERIOD=1"),
)
RETRIEVAL = (
    *("training.steps=4", "training.evaluate_every=2", "training.log_every=1", "batch_size=16"),
    "optimizer.warmup_steps=1",
)
DETECTORS = ["source-only", "adapted", "adapted + gh", "adapted + gh++", "oracle"]


def demo_of(name, overrides, folder, seeds):
    preset = dataclasses.replace(find_preset(name), small=overrides, small_burn_in=overrides).in_small()
    # The folder holds data already, of another size than the preset's.
    preset = dataclasses.replace(preset, data=dataclasses.replace(preset.data, maker="builtins:str"))
    comparison = Comparison(
        [preset], ["sum", "gh", "gh++"], folder / "out", folder / "datasets", seeds=seeds, oracle=True
    )
    assert train_all(comparison, 2) == {}
    return comparison


@pytest.fixture(scope="module", params=["detection", "detection-detectron2"])
def detection(request, tmp_path_factory):
    if request.param == "detection-detectron2":
        pytest.importorskip("detectron2.engine", reason="needs Detectron2", exc_type=ImportError)
    folder = tmp_path_factory.mktemp(request.param)
    make_mini_cityscapes(folder / "datasets" / "mini_cityscapes", train=8, val=4, seed=3, height=96, width=192)
    overrides = {"detection": TORCHVISION, "detection-detectron2": DETECTRON2}[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", "")  # so that what the preset sets is taken back
        yield demo_of(request.param, overrides, folder, seeds=1)


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval")
    make_mini_scenes(folder / "datasets" / "mini_scenes", train=60, target=40, val=8, test=24)
    return demo_of("retrieval", RETRIEVAL, folder, seeds=2)


def test_every_detector_can_be_read(detection):
    stored = [RESULTS.read(run.folder) for run in detection.runs()]
    assert len({configuration for _, configuration in stored}) == len(stored) == len(DETECTORS)
    for run, (results, _) in zip(detection.runs(), stored, strict=True):
        (result,) = results.values()
        assert (result.fog_density, result.num_images) == (0.02, 4)
        read = read_run(run)
        steps, values = read.series(run.preset.metric)
        assert steps in ([0, 2, 3], [2, 3])  # Detectron2 evaluates nothing before the first iteration
        assert values[-1] == pytest.approx(result.ap50)
        assert read.metric == pytest.approx(result.ap50)
        (path,) = (run.folder / "detections").iterdir()
        found = json.loads(path.read_text())
        assert found
        assert {frozenset(d) for d in found} == {frozenset(("image_id", "category_id", "bbox", "score"))}


def test_gradients_are_those_of_the_adapted_runs(detection):
    (group,) = read_comparison(detection)
    assert [row.name for row in group.rows] == DETECTORS
    assert [row.name for row in group.rows if row.lines] == DETECTORS[1:4]
    for row in group.rows[1:4]:
        for line in row.lines:
            assert -1 <= line["gh/cosine"] <= 1
            assert line["gh/conflict"] == (line["gh/angle"] > 90)
            assert line["gh/opposed"] in (0, 1)
            assert min(line["gh/norm/task"], line["gh/norm/alignment"], line["gh/gain"]) > 0
            if row.weighting == "sum":
                assert (line["gh/weight/task"], line["gh/weight/alignment"]) == (1, 1)
                assert line["gh/gain"] == pytest.approx(1)
            if row.weighting == "gh":
                # GH: tau_task = 1 - c n_alignment / n_task where the cosine is negative, capped at 10.
                ratio = line["gh/norm/alignment"] / line["gh/norm/task"]
                expected = min(1 - min(line["gh/cosine"], 0) * ratio, 10)
                assert line["gh/weight/task"] == pytest.approx(expected, rel=1e-6)


def test_detectors_go_on_from_the_burn_in(detection):
    """All three begin with the same weights and data, so that their first gradients have the same norms."""
    (group,) = read_comparison(detection)
    norms = [row.lines[0]["gh/norm/task"] for row in group.rows[1:4]]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-5)
    run = detection.runs()[2]
    assert str(run.burn_in.folder) in (run.folder / "config.yaml").read_text()


def test_the_report_of_detection_shows_every_detector(detection):
    metric, _, table = write_comparison(detection, {})
    assert [row[0] for row in table.rows] == [row[0] for row in metric.rows] == DETECTORS
    assert [row[-3] for row in table.rows] == pytest.approx([row[2] for row in metric.rows])
    page = (detection.output / "report.html").read_text()
    name = {"native": "torchvision", "detectron2": "Detectron2"}[detection.presets[0].engine_name]
    assert f"Faster R-CNN of {name}" in page
    # Detections, the metric, angles, weights; and four of the controlled problems.
    assert page.count("data:image/png") == 4 + 4


def test_the_report_of_retrieval_shows_every_encoder(retrieval):
    metric, _, table = write_comparison(retrieval, {})
    names = ["source-only", "aligned", "aligned + gh", "aligned + gh++"]
    assert [row[0] for row in table.rows] == names
    assert [row[4].mean for row in table.rows] == pytest.approx([row[2].mean for row in metric.rows])
    page = (retrieval.output / "report.html").read_text()
    for heading in ("Recall at 1 on both domains", "Recall on the target", "Recall on the source"):
        assert heading in page
    # Two sheets of queries, the metric, angles, weights; and four of the controlled problems.
    assert page.count("data:image/png") == 5 + 4
    assert len(re.findall("first 6 images of the target", page)) == 4  # captions, and what stands for the pictures


def recalls(source, target):
    return {
        domain: {f"{direction}_R@1": value for direction in ("image_to_text", "text_to_image")}
        for domain, value in (("source", source), ("target", target))
    }


def test_the_summary_compares_with_source_only():
    table = recall_summary(
        {
            "source-only": [recalls(80.0, 10.0), recalls(90.0, 20.0)],
            "aligned": [recalls(79.0, 30.0), recalls(85.0, 33.0)],
        }
    )
    first, second = table.rows
    assert first[:3] == ["source-only", 2, Spread(85.0, pytest.approx(50**0.5), 2)]
    assert first[-2:] == [1.0, 0.0]
    assert second[-2:] == [pytest.approx(2.1), 3.0]
