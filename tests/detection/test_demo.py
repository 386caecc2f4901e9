"""The demo with each engine: which one is chosen and alone imported, and the report of a few steps on small streets."""

import dataclasses
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("torchvision", reason="needs pip install 'gh_downstream[detection]'")

from gh_downstream.detection.data import load_cityscapes
from gh_downstream.detection.demo import RUNS, Training, choose_engine, load_engine, train_runs, write_demo_report
from gh_downstream.detection.evaluation import RESULTS, Detection, evaluate_detections, write_detections
from gh_downstream.harmonization import GH, Report
from gh_downstream.reporting import Spread
from gh_downstream.training.metrics import MetricsLog

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "detection"
FOGGY = "mini_cityscapes_foggy_0.02_val"
ADAPTED = ("adapted", "gh", "gh++")
MISSING = "import sys; sys.modules['detectron2'] = None"
BROKEN = """
import sys
class Broken:
    def find_spec(name, path, target=None):
        if name == "detectron2":
            raise AttributeError("module 'PIL.Image' has no attribute 'LINEAR'")
sys.meta_path.insert(0, Broken)
"""
SHOW = "import logging; logging.basicConfig(level='INFO', format='%(message)s')"


def needs_detectron2():
    # Not "detectron2": the folder of its tests would pass for a namespace package of that name.
    pytest.importorskip("detectron2.engine", reason="needs Detectron2", exc_type=ImportError)


def python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


class TestChoice:
    def test_the_plan_imports_no_engine(self):
        result = python("import gh_downstream.detection.demo, sys; print(*sys.modules)")
        assert result.returncode == 0, result.stderr
        modules = set(result.stdout.split())
        assert "gh_downstream.detection.demo" in modules
        assert not modules & {
            "torchvision",
            "detectron2",
            "gh_downstream.detection.torchvision",
            "gh_downstream.detection.detectron2",
        }

    def test_torchvision_is_taken_as_asked_for_without_a_look_at_detectron2(self):
        code = "from gh_downstream.detection.demo import *; import sys; load_engine(choose_engine('torchvision'))"
        result = python(f"{SHOW}\n{code}; print(*sys.modules)")
        assert result.stderr.splitlines()[0] == "engine: torchvision, as asked for"
        modules = set(result.stdout.split())
        assert "gh_downstream.detection.torchvision.demo" in modules
        assert not modules & {"detectron2", "gh_downstream.detection.detectron2"}

    def test_detectron2_is_taken_where_it_can_be_imported(self, caplog):
        needs_detectron2()
        with caplog.at_level(logging.INFO):
            assert choose_engine() == "detectron2"
        (line,) = caplog.messages
        assert line.startswith("engine: detectron2, which can be imported here")

    def test_detectron2_leaves_the_other_engine_alone(self):
        needs_detectron2()
        code = "from gh_downstream.detection.demo import *; import sys; load_engine('detectron2')"
        result = python(f"{code}; print(*sys.modules)")
        assert result.returncode == 0, result.stderr
        modules = set(result.stdout.split())
        assert "gh_downstream.detection.detectron2.demo" in modules
        assert "gh_downstream.detection.torchvision" not in modules

    @pytest.mark.parametrize(
        ("state", "reason"),
        [(MISSING, "pip install --no-build-isolation 'git+https"), (BROKEN, "'PIL.Image' has no attribute 'LINEAR'")],
        ids=["missing", "broken"],
    )
    def test_torchvision_is_taken_where_detectron2_cannot_be_imported(self, state, reason):
        code = "from gh_downstream.detection.demo import choose_engine; print(choose_engine())"
        result = python(f"{state}\n{SHOW}\n{code}")
        assert result.stdout.strip() == "torchvision"
        (line,) = result.stderr.splitlines()
        assert line.startswith("engine: torchvision, as Detectron2 cannot be imported here: ")
        assert reason in line

    def test_an_unknown_engine_is_an_error(self):
        with pytest.raises(ValueError, match="there are detectron2 and torchvision"):
            load_engine("yolo")


class TestTool:
    def test_detectron2_asked_for_but_missing_is_one_line_and_touches_nothing(self, tmp_path):
        arguments = ["--engine", "detectron2", "--output", str(tmp_path / "out"), "--datasets", str(tmp_path / "data")]
        code = f"{MISSING}; sys.path.insert(0, 'tools'); import demo; sys.exit(demo.main({arguments}))"
        result = python(code, cwd=ROOT)
        assert result.returncode == 2
        first, last = result.stderr.strip().splitlines()
        assert first == "engine: detectron2, as asked for"
        assert last.startswith("error: ")
        assert "pip install --no-build-isolation" in last
        assert not any(tmp_path.iterdir())

    def test_data_of_something_else_are_left_alone(self, tmp_path, capsys):
        import demo

        (tmp_path / "mini_cityscapes").mkdir()
        (tmp_path / "mini_cityscapes" / "thesis.tex").touch()
        arguments = ["--output", str(tmp_path / "out"), "--datasets", str(tmp_path)]
        assert demo.main(["--engine", "torchvision", *arguments]) == 2
        assert "holds something else than Mini-Cityscapes" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    @pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
    @pytest.mark.parametrize(
        ("variable", "expected"), [([], []), (["ENGINE=torchvision"], ["--engine", "torchvision"])]
    )
    def test_make_hands_the_engine_on(self, variable, expected):
        # The suite itself may run under make, whose flags and level are not this call's.
        others = ("ENGINE", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
        environment = {name: value for name, value in os.environ.items() if name not in others}
        command = ["make", "--dry-run", "demo", *variable]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        words = result.stdout.strip().splitlines()[-1].split()
        assert words[words.index("tools/demo.py") + 1 :] == ["--output", "outputs/demo", *expected]


def small_configs(folder):
    """Three steps of every configuration of both engines, evaluated after the second and the last."""
    sizes = {"min_size": 64, "max_size": 128}
    steps = {"steps": 3, "log_every": 1, "evaluate_every": 2, "checkpoint_every": 2}
    content = {"detector": sizes, "training": steps, "optimizer": {"milestones": []}}
    write(folder, "torchvision", "mini-{}.yaml", RUNS.values(), {"_base_": "torchvision/mini-{}.yaml", **content})
    content = {
        "INPUT": {"MIN_SIZE_TRAIN": [64], "MAX_SIZE_TRAIN": 128, "MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 128},
        "SOLVER": {"MAX_ITER": 3, "STEPS": [], "WARMUP_ITERS": 2, "CHECKPOINT_PERIOD": 2},
        "TEST": {"EVAL_PERIOD": 2},
        "GH": {"LOG_PERIOD": 1},
    }
    names = ("source-only", "da", "da_gh", "da_gh++", "oracle")
    write(folder, "mini", "{}.yaml", names, {"_BASE_": "mini/{}.yaml", **content})


def write(folder, engine, pattern, names, content):
    (folder / engine).mkdir(parents=True)
    base, *rest = content
    for name in ("burn-in", *names):
        layer = {base: str(CONFIGS / content[base].format(name)), **{key: content[key] for key in rest}}
        (folder / engine / pattern.format(name)).write_text(yaml.safe_dump(layer))


@pytest.fixture(scope="module")
def streets(mini_tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "mini_cityscapes"
    folder.symlink_to(mini_tree)
    return folder


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    small_configs(folder)
    return folder


@pytest.fixture(scope="module", params=["torchvision", "detectron2"])
def trained(request, configs, streets, tmp_path_factory):
    """The name of an engine, and the folder of its runs."""
    if request.param == "detectron2":
        needs_detectron2()
    output = tmp_path_factory.mktemp(request.param)
    train_runs(request.param, configs, streets, output, jobs=2)
    return request.param, output


def write_metrics_json(path, iterations, last, measured, ap50, test_set="", killed=False):
    """What Detectron2's writer writes every 2 iterations of a training that evaluates after the fourth and the last."""
    from detectron2.utils.events import EventStorage, JSONWriter

    with EventStorage(iterations.start) as storage:
        writer = JSONWriter(str(path))
        for storage.iter in iterations:
            storage.put_scalar("total_loss", 2.5)
            for key, value in measured(storage.iter + 1).items():
                storage.put_scalar(f"gh/{key.replace('/', '_')}", value, smoothing_hint=False)
            if storage.iter == 3:
                storage.put_scalar(f"{test_set}bbox/AP50", ap50(4), smoothing_hint=False)
            if storage.iter % 2:
                writer.write()
        if not killed:
            # As in after_train: one more than the last iteration, two where a finished training is called again.
            storage.iter = last
            storage.put_scalar(f"{test_set}bbox/AP50", ap50(last), smoothing_hint=False)
            writer.write()
        writer.close()


class TestMetricsOfDetectron2:
    @pytest.fixture(autouse=True)
    def _detectron2(self):
        needs_detectron2()

    def write(self, path, iterations, last, base, **options):
        write_metrics_json(path, iterations, last, lambda k: {"cosine": base + k}, lambda k: base + k, **options)

    def read(self, path):
        from gh_downstream.detection.detectron2.demo import read_metrics

        return read_metrics(path)

    def test_a_step_is_the_number_of_iterations_done(self, tmp_path):
        self.write(tmp_path / "metrics.json", range(8), 8, base=100)
        lines = self.read(tmp_path / "metrics.json")
        assert [(line["step"], line["gh/cosine"]) for line in lines] == [(2, 102), (4, 104), (6, 106), (8, 108)]
        # The last evaluation comes after the last iteration, under a number of its own.
        assert [(line["step"], line["bbox/AP50"]) for line in lines if "bbox/AP50" in line] == [(4, 104), (8, 108)]

    def test_a_resumed_training_replaces_what_it_does_again(self, tmp_path):
        path = tmp_path / "metrics.json"
        self.write(path, range(6), 6, base=100, killed=True)
        self.write(path, range(4, 8), 8, base=200)
        self.write(path, range(8, 8), 9, base=300)  # finished already: evaluated once more
        lines = self.read(path)
        assert [(line["step"], line["gh/cosine"]) for line in lines] == [(2, 102), (4, 104), (6, 206), (8, 208)]
        assert [(line["step"], line["bbox/AP50"]) for line in lines if "bbox/AP50" in line] == [(4, 104), (8, 309)]

    def test_a_line_that_a_kill_cut_off_is_skipped(self, tmp_path):
        path = tmp_path / "metrics.json"
        self.write(path, range(6), 6, base=100, killed=True)
        path.write_text(path.read_text()[:-20])
        assert [line["step"] for line in self.read(path)] == [2, 4]
        self.write(path, range(4, 8), 8, base=200)
        assert [line["step"] for line in self.read(path)] == [2, 4, 8]

    def test_numbers_that_are_not_finite_are_left_out(self, tmp_path):
        self.write(tmp_path / "metrics.json", range(4), 4, base=float("nan"))
        assert self.read(tmp_path / "metrics.json") == [{"step": k, "total_loss": 2.5} for k in (2, 4)]


def measured(step):
    """What a harmonized step reports: a conflict at every second one that is written."""
    cosine = 0.5 if step % 4 else -0.5
    gramian = torch.tensor([[1.0, 2 * cosine], [2 * cosine, 4.0]], dtype=torch.float64)
    return Report(("alignment", "task"), gramian, GH()(gramian)).as_dict()


def ap50_after(step):
    return 10.0 + step


def write_run(engine, folder, configuration, result, detections, harmonized, test_set=""):
    """The folder of a finished run of 8 steps, as the writers of the engine leave it."""
    name = {"torchvision": "foggy", "detectron2": FOGGY}[engine]
    RESULTS.write(folder, configuration, {name: result, "other": dataclasses.replace(result, dataset="x", ap50=1.0)})
    write_detections(folder / "detections", name, detections)
    reports = measured if harmonized else lambda step: {}
    if engine == "detectron2":
        write_metrics_json(folder / "metrics.json", range(8), 8, reports, ap50_after, test_set)
        return
    log = MetricsLog(folder, 0, 8)
    for step in (2, 4, 6, 8):
        log.write(step, {"total": 2.5, **reports(step)})
        if step in (4, 8):
            log.write(step, {"foggy/ap50": ap50_after(step), "other/ap50": 1.0})
    log.close()


@pytest.fixture(params=["torchvision", "detectron2"])
def engine(request):
    if request.param == "detectron2":
        needs_detectron2()
    return request.param


def text_of(page):
    """The words of a page, one space between them."""
    return " ".join(re.sub("<[^>]*>", " ", page.read_text()).split())


class TestReading:
    @pytest.fixture
    def found(self, streets):
        """Half of the objects of the foggy streets, as detections, and what they are worth."""
        dataset = load_cityscapes(streets, "val", 0.02)
        detections = [
            Detection(image_id=r["image_id"], category_id=a["category_id"], bbox=a["bbox"], score=0.9)
            for r in dataset.records
            for a in r["annotations"][::2]
            if not a["iscrowd"]
        ]
        result = evaluate_detections(dataset, detections)
        assert 0 < result.ap50 < 100
        return result, detections

    @pytest.mark.parametrize("test_set", ["", f"{FOGGY}/"], ids=["one test set", "several"])
    def test_a_run_is_read_as_it_was_written(self, engine, found, tmp_path, test_set):
        write_run(engine, tmp_path, "abc", *found, harmonized=True, test_set=test_set)
        run = load_engine(engine).read_run(tmp_path)
        assert (run.result, run.configuration, run.detections) == (found[0], "abc", found[1])
        assert [list(values) for values in run.ap50] == [[4, 8], [ap50_after(4), ap50_after(8)]]
        for line, step in zip(run.gradients, (2, 4, 6, 8), strict=True):
            expected = {"step": step, **measured(step)}
            assert {key: line[key] for key in expected} == pytest.approx(expected)

    def test_the_report_has_the_figures_of_all_seeds(self, engine, found, streets, tmp_path):
        result, detections = found
        for seed in range(2):
            for k, run in enumerate(RUNS.values()):
                figures = dict.fromkeys(("ap", "ap50", "ap75"), 10.0 * (k + 1) + 2 * seed)
                folder = tmp_path / f"seed{seed}" / run
                write_run(
                    engine, folder, run, dataclasses.replace(result, **figures), detections, harmonized=run in ADAPTED
                )
        table = write_demo_report(engine, streets, tmp_path, seeds=2)
        for k, (row, name) in enumerate(zip(table.rows, RUNS, strict=True)):
            assert row[:2] == [name, 2]
            for cell in row[-3:]:
                assert cell == Spread(10.0 * (k + 1) + 1, pytest.approx(2**0.5), 2)
        assert json.loads((tmp_path / "table.json").read_text()) == table.as_dict()
        page = text_of(tmp_path / "report.html")
        assert "21.0 ± 1.4" in page
        # Half of the lines conflict, at 120 degrees, the others stand at 60; GH opposes nothing.
        assert page.count("50.00 0.00 90.00") == len(ADAPTED)


class TestRuns:
    def test_every_run_can_be_read(self, trained):
        engine, output = trained
        runs = {name: load_engine(engine).read_run(output / "seed0" / name) for name in RUNS.values()}
        assert len({run.configuration for run in runs.values()}) == len(runs)
        for run in runs.values():
            assert run.result.fog_density == 0.02
            assert run.result.num_images == 4
            steps, ap50 = run.ap50
            assert list(steps) == [2, 3]
            assert ap50[-1] == pytest.approx(run.result.ap50)
            assert run.detections
            assert {frozenset(d) for d in run.detections} == {frozenset(("image_id", "category_id", "bbox", "score"))}

    def test_gradients_are_those_of_the_adapted_runs(self, trained):
        engine, output = trained
        runs = {name: load_engine(engine).read_run(output / "seed0" / name) for name in RUNS.values()}
        assert {name for name, run in runs.items() if run.gradients} == set(ADAPTED)
        for name in ADAPTED:
            for step, line in enumerate(runs[name].gradients, start=1):
                assert line["step"] == step
                assert -1 <= line["cosine"] <= 1
                assert 0 <= line["angle"] <= 180
                assert line["conflict"] == (line["angle"] > 90)
                assert line["opposed"] in (0, 1)
                assert min(line["norm/task"], line["norm/alignment"], line["gain"]) > 0
                if name == "adapted":
                    assert (line["weight/task"], line["weight/alignment"]) == (1, 1)
                    assert line["gain"] == pytest.approx(1)
                if name == "gh":
                    # GH: tau_task = 1 - c n_alignment / n_task where the cosine is negative.
                    ratio = line["norm/alignment"] / line["norm/task"]
                    assert line["weight/task"] == pytest.approx(1 - min(line["cosine"], 0) * ratio, rel=1e-6)
        assert len(runs["gh"].gradients) == 3

    def test_the_methods_go_on_from_the_burn_in(self, trained):
        """All three begin with the same weights and data, so that their first gradients have the same norms."""
        engine, output = trained
        first = [load_engine(engine).read_run(output / "seed0" / name).gradients[0] for name in ADAPTED]
        assert first[0]["norm/task"] == pytest.approx(first[1]["norm/task"], rel=1e-5)
        assert first[0]["norm/task"] == pytest.approx(first[2]["norm/task"], rel=1e-5)
        config = (output / "seed0" / "gh" / "config.yaml").read_text()
        assert str(output / "seed0" / "burn-in") in config

    def test_the_report_says_who_detected(self, trained, streets):
        engine, output = trained
        table = write_demo_report(engine, streets, output)
        assert [row[0] for row in table.rows] == list(RUNS)
        page = (output / "report.html").read_text()
        markdown = (output / "table.md").read_text()
        name = {"torchvision": "torchvision", "detectron2": "Detectron2"}[engine]
        for text in (page, markdown, "\n".join(table.header)):
            assert f"Faster R-CNN of {name}" in text
        for method in RUNS:
            assert f">{method}<" in page
        assert "Gradients of task and alignment" in page
        assert page.count("data:image/png") == 4

    @pytest.mark.parametrize("run", ["burn-in", "gh"])
    def test_a_second_call_keeps_what_is_finished(self, run, trained, configs, streets, monkeypatch):
        monkeypatch.setenv("DETECTRON2_DATASETS", "")  # so that what training sets is taken back
        engine, output = trained
        training = Training(run, configs, streets, output, seed=0)
        weights = {path: path.read_bytes() for path in output.rglob("*.pt*")}
        before = load_engine(engine).read_run(training.folder)
        assert weights
        assert load_engine(engine).train(training) == 0
        assert {path: path.read_bytes() for path in output.rglob("*.pt*")} == weights
        assert load_engine(engine).read_run(training.folder) == before

    def test_a_training_that_fails_names_its_log(self, trained, configs, streets, tmp_path):
        engine, _ = trained
        broken = shutil.copytree(configs, tmp_path / "configs")
        name, section = {
            "torchvision": ("torchvision/mini-burn-in", "training"),
            "detectron2": ("mini/burn-in", "SOLVER"),
        }[engine]
        settings = yaml.safe_load((broken / f"{name}.yaml").read_text())
        settings[section]["STEPZ"] = 3
        (broken / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        log = tmp_path / "out" / "seed0" / "burn-in" / "log.txt"
        with pytest.raises(RuntimeError, match=rf"^seed 0, burn-in: .*STEPZ.*\(log: {re.escape(str(log))}\)") as error:
            train_runs(engine, broken, streets, tmp_path / "out")
        assert "call again to go on" in str(error.value)
        assert "Traceback" in log.read_text()
        assert [path.name for path in log.parents[1].iterdir()] == ["burn-in"]

    def test_detectron2_finds_the_streets_by_name(self, configs, mini_tree, tmp_path):
        needs_detectron2()
        assert mini_tree.name != "mini_cityscapes"
        with pytest.raises(ValueError, match=f"{mini_tree}: .*called mini_cityscapes"):
            load_engine("detectron2").train(Training("burn-in", configs, mini_tree, tmp_path, seed=0))
