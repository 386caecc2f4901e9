"""Detectron2's command line as a user runs it, on small streets: training, evaluation, resuming, processes, AMP."""

import json
import math
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.engine import hooks

from gh_downstream.cli import train_net
from gh_downstream.detection.data import load_cityscapes
from gh_downstream.detection.detectron2.data import dataset_of
from gh_downstream.detection.detectron2.metrics import read_metrics
from gh_downstream.detection.detectron2.trainer import DomainAdaptiveTrainer, evaluate, load_cfg, train
from gh_downstream.integrations.detectron2.config import settings_of
from tests.integrations.detectron2 import toy_detectors as common_detectors  # noqa: F401  # skips where there is no Detectron2

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs" / "detection"
SMALL = ["MODEL.WEIGHTS", "", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "10"]
SMALL += [
    "INPUT.MIN_SIZE_TRAIN",
    "(64,)",
    "INPUT.MIN_SIZE_TEST",
    "64",
    "SOLVER.WARMUP_ITERS",
    "2",
    "SOLVER.STEPS",
    "()",
]
SMALL += ["TEST.EVAL_PERIOD", "0", "MODEL.RESNETS.NORM", "BN"]  # frozen statistics of random weights normalize nothing
GH_PLUS_PLUS = ("GH.WEIGHTING", "gh++")
SOURCE_ONLY = ("DATASETS.TARGET", "()", "DA.METHOD", "none", "GH.WEIGHTING", "none")
TEST_SET = "mini_cityscapes_foggy_0.02_val"


@pytest.fixture(autouse=True)
def data(mini_tree, tmp_path_factory, monkeypatch):
    root = tmp_path_factory.mktemp("root")
    (root / "mini_cityscapes").symlink_to(mini_tree)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))


def overrides(folder, iterations, *more):
    return [*SMALL, "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", str(iterations), *more]


def command(config, options, *flags):
    module = ["-m", "gh_downstream.cli.train_net"]
    return [sys.executable, *module, "--config-file", str(CONFIGS / config), *flags, *options]


def run(config, options, *flags):
    return subprocess.run(command(config, options, *flags), cwd=ROOT, capture_output=True, text=True, check=False)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def weights(folder, name="model_final.pth"):
    return torch.load(folder / name, weights_only=True)["model"]


def assert_same(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def test_training_evaluates_harmonizes_and_can_be_evaluated_again(tmp_path):
    finished = run("mini/da.yaml", overrides(tmp_path / "run", 4, *GH_PLUS_PLUS))
    assert finished.returncode == 0, finished.stderr
    assert "mAP50" in finished.stdout
    for name in ("person", "bicycle", "fog density 0.02"):
        assert name in finished.stdout
    written = [line for line in lines(tmp_path / "run") if "gh/cosine" in line]
    assert [line["iteration"] for line in written] == [1, 3]
    assert all(-1 <= line["gh/cosine"] <= 1 and line["gh/weight/task"] >= 1 for line in written)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["results"]) == [TEST_SET]
    trained = {name: (tmp_path / "run" / name).read_text() for name in ("config.yaml", "log.txt", "results.json")}
    for folder in ("again", "run"):
        again = run(
            "mini/da.yaml",
            overrides(tmp_path / folder, 4, *GH_PLUS_PLUS, "MODEL.WEIGHTS", str(tmp_path / "run" / "model_final.pth")),
            "--eval-only",
        )
        assert again.returncode == 0, again.stderr
        found = json.loads((tmp_path / folder / "evaluation" / "results.json").read_text())
        assert found["results"] == results["results"]
    assert trained == {name: (tmp_path / "run" / name).read_text() for name in trained}


@pytest.mark.parametrize("flags", [[], ["--num-gpus", "2", "--dist-url", "auto"]], ids=["alone", "two processes"])
def test_a_name_trains_where_there_is_no_clone_and_says_what_matters(tmp_path, flags):
    words = ["--config-file", "detection/mini/da", *flags, *overrides("run", 2, *GH_PLUS_PLUS)]
    finished = subprocess.run(
        [sys.executable, "-m", "gh_downstream.cli.train_net", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "run" / "model_final.pth").is_file()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count(f"{TEST_SET}: 4 images") == 1  # which is read for the check, and for each evaluation twice
    said = finished.stdout + finished.stderr
    for noise in ("torch.jit", "meshgrid", "is_fx_tracing", "No CUDA runtime"):
        assert noise not in said


def test_a_killed_training_resumes_bit_for_bit(tmp_path):
    """With everything that has a state: alignment, harmonization that holds its weights, teacher, burn-in."""
    more = [
        *GH_PLUS_PLUS,
        "SOLVER.CHECKPOINT_PERIOD",
        "2",
        "DA.BURN_IN_ITERS",
        "3",
        "GH.PERIOD",
        "3",
        "TEACHER.SCORE_THRESHOLD",
        "0.1",
    ]
    config = "mini/mean-teacher.yaml"
    train(load_cfg(str(CONFIGS / config), overrides(tmp_path / "whole", 8, *more)))
    process = subprocess.Popen(command(config, overrides(tmp_path / "killed", 8, *more)), cwd=ROOT)
    while not (tmp_path / "killed" / "model_0000003.pth").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = run(config, overrides(tmp_path / "killed", 8, *more), "--resume")
    assert finished.returncode == 0, finished.stderr
    assert "Starting training from iteration 0" not in finished.stdout
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert_same(weights(tmp_path / "whole", "teacher_final.pth"), weights(tmp_path / "killed", "teacher_final.pth"))
    # It is the teacher that was evaluated, and that is evaluated again.
    trained = (tmp_path / "killed" / "results.json").read_text()
    evaluate(load_cfg(str(CONFIGS / config), overrides(tmp_path / "killed", 8, *more)), resume=True)
    assert (tmp_path / "killed" / "results.json").read_text() == trained
    assert (tmp_path / "killed" / "evaluation" / "results.json").read_text() == trained


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_training_with_a_checkpoint(tmp_path, number, processes):
    flags = ["--num-gpus", str(processes), "--dist-url", "auto"]
    more = [*GH_PLUS_PLUS, "SOLVER.CHECKPOINT_PERIOD", "1000", "GH.LOG_PERIOD", "1"]
    process = subprocess.Popen(
        command("mini/da.yaml", overrides(tmp_path, 500, *more), *flags),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "metrics.json"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    process.send_signal(number)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in out + errors
    (line,) = [line for line in out.splitlines() if "stopped by" in line]
    assert f"stopped by {number.name} after iteration" in line
    (checkpoint,) = tmp_path.glob("model_*.pth")
    assert (tmp_path / "last_checkpoint").read_text() == checkpoint.name
    done = torch.load(checkpoint, weights_only=True)["iteration"] + 1
    finished = run("mini/da.yaml", overrides(tmp_path, done + 1, *more), "--resume", *flags)
    assert finished.returncode == 0, finished.stderr
    assert f"Starting training from iteration {done}" in finished.stdout


def test_one_training_at_a_time_writes_into_a_folder(tmp_path, capsys):
    more = ["SOLVER.CHECKPOINT_PERIOD", "1000", "GH.LOG_PERIOD", "1"]
    first = subprocess.Popen(
        command("mini/da.yaml", overrides(tmp_path, 10_000, *more)), cwd=ROOT, stdout=subprocess.DEVNULL
    )
    try:
        while first.poll() is None and not (tmp_path / "config.yaml").exists():
            time.sleep(0.05)
        with pytest.raises(SystemExit):
            train_net.main(command("mini/da.yaml", overrides(tmp_path, 10_000, *more), "--resume")[3:])
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith(f"error: {tmp_path} is in use by another training, process {first.pid}")
    finally:
        first.kill()
        first.wait()
    train(load_cfg(str(CONFIGS / "mini" / "da.yaml"), overrides(tmp_path, 1)))  # a killed one leaves no lock


@pytest.mark.parametrize("stop", [2, 4, 5])
def test_resuming_between_checkpoints_gives_the_same_result(tmp_path, stop):
    class Stop(hooks.HookBase):
        def before_step(self):
            if self.trainer.iter == stop:
                raise KeyboardInterrupt

    more = ["SOLVER.CHECKPOINT_PERIOD", "2", "DA.BURN_IN_ITERS", "3"]
    cfg = load_cfg(str(CONFIGS / "mini" / "da.yaml"), overrides(tmp_path / "whole", 6, *more))
    train(cfg)
    cfg = load_cfg(str(CONFIGS / "mini" / "da.yaml"), overrides(tmp_path / "stopped", 6, *more))
    trainer = DomainAdaptiveTrainer(cfg)
    trainer.register_hooks([Stop()])
    trainer.resume_or_load(resume=False)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    train(cfg, resume=True)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def test_a_training_is_resumed_with_its_own_configuration_alone(tmp_path, capsys):
    def resume(iterations, *options):
        train_net.main(command("mini/da.yaml", overrides(tmp_path, iterations, *options), "--resume")[3:])

    resume(1)  # nothing there: it begins
    for options, key in {
        GH_PLUS_PLUS: "GH.WEIGHTING was 'sum' and is 'gh++'",
        ("SEED", "7"): "SEED was ",
        ("DATASETS.TRAIN", "('mini_cityscapes_val',)"): "DATASETS.TRAIN was ['mini_cityscapes_source_train'] and is ",
        ("SOLVER.BASE_LR", "0.5", "DA.METHOD", "strong_weak"): "DA.METHOD was 'image_instance' and is 'strong_weak'",
    }.items():
        written = (tmp_path / "config.yaml").read_text()
        with pytest.raises(SystemExit):
            resume(1, *options)
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith(f"error: {tmp_path} belongs to another configuration: ")
        assert key in message
        assert message.endswith("choose another OUTPUT_DIR")
        assert (tmp_path / "config.yaml").read_text() == written
    free = ["SOLVER.STEPS", "(1,)", "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "5", "GH.LOG_PERIOD", "1"]
    resume(2, *free, "DATALOADER.NUM_WORKERS", "1", "MODEL.WEIGHTS", str(tmp_path / "model_final.pth"))
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 1


@pytest.mark.parametrize("weighting", ["sum", "gh", "gh++"])
def test_every_loss_of_the_alignment_is_a_task_of_its_own_and_resumes(tmp_path, weighting):
    config = str(CONFIGS / "mini" / "da.yaml")
    more = ["GH.WEIGHTING", weighting, "GH.LOG_PERIOD", "1", "SOLVER.CHECKPOINT_PERIOD", "2"]
    for task, losses in {
        "IMAGE": ["loss_image_domain"],
        "INSTANCE": ["loss_instance_domain"],
        "CONSISTENCY": ["loss_consistency"],
        "TASK": [],
    }.items():
        more += [f"GH.TASKS.{task}", str(losses)]
    train(load_cfg(config, overrides(tmp_path / "whole", 4, *more)))
    resumed_from(tmp_path, "model_0000001.pth")
    train(load_cfg(config, overrides(tmp_path / "stopped", 4, *more)), resume=True)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    lines = [line for line in read_metrics(tmp_path / "stopped" / "metrics.json") if "gh/gain" in line]
    assert lines
    assert read_metrics(tmp_path / "whole" / "metrics.json")[-1]["images_per_second"] > 0
    for line in lines:
        assert all(line[f"gh/norm/{task}"] > 0 for task in ("image", "instance", "consistency", "task"))
        assert (line["gh/gain"] == pytest.approx(1)) == (weighting == "sum" or not line["gh/conflict"])


def resumed_from(folder, checkpoint):
    """A training that was stopped after a checkpoint of a whole one."""
    (folder / "stopped").mkdir()
    shutil.copy(folder / "whole" / checkpoint, folder / "stopped")
    (folder / "stopped" / "last_checkpoint").write_text(checkpoint)


def test_a_retinanet_resumes_bit_for_bit_too(tmp_path):
    """Its losses are divided by a running mean, which Detectron2 keeps out of its checkpoints."""
    config = str(CONFIGS / "mini" / "RetinaNet.yaml")
    more = [*GH_PLUS_PLUS, "DA.BURN_IN_ITERS", "1", "SOLVER.CHECKPOINT_PERIOD", "2"]
    train(load_cfg(config, overrides(tmp_path / "whole", 4, *more)))
    resumed_from(tmp_path, "model_0000001.pth")
    train(load_cfg(config, overrides(tmp_path / "stopped", 4, *more)), resume=True)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def test_the_schedule_of_the_adaptation_scales_with_the_processes(tmp_path):
    options = ["SOLVER.REFERENCE_WORLD_SIZE", "1", "DA.BURN_IN_ITERS", "100", "GH.WARMUP_STEPS", "120"]
    cfg = load_cfg(str(CONFIGS / "mini" / "da.yaml"), [*options, "SOLVER.IMS_PER_BATCH_TARGET", "3"])
    scaled = DomainAdaptiveTrainer.auto_scale_workers(cfg, 4)
    assert (scaled.SOLVER.IMS_PER_BATCH, scaled.SOLVER.IMS_PER_BATCH_TARGET, scaled.SOLVER.MAX_ITER) == (8, 12, 75)
    assert (scaled.DA.BURN_IN_ITERS, scaled.GH.WARMUP_STEPS) == (25, 30)
    assert DomainAdaptiveTrainer.auto_scale_workers(cfg, 1) is cfg


def test_two_processes_on_a_cpu(tmp_path):
    config, options = "mini/da.yaml", overrides(tmp_path, 4, *GH_PLUS_PLUS, "DA.BURN_IN_ITERS", "1", "SEED", "3")
    finished = run(config, options, "--num-gpus", "2", "--dist-url", "auto")
    assert finished.returncode == 0, finished.stderr
    assert "World size: 2" in finished.stdout
    assert len([line for line in lines(tmp_path) if "gh/gain" in line]) == 2
    assert list(json.loads((tmp_path / "results.json").read_text())["results"]) == [TEST_SET]


def test_amp_on_a_cpu_is_bfloat16(tmp_path):
    options = overrides(tmp_path, 3, *GH_PLUS_PLUS, "SOLVER.AMP.ENABLED", "True", "GH.LOG_PERIOD", "1")
    train(load_cfg(str(CONFIGS / "mini" / "da.yaml"), options))
    losses = [line["total_loss"] for line in lines(tmp_path) if "total_loss" in line]
    assert losses
    assert all(map(math.isfinite, losses))
    assert "gh/cosine" in lines(tmp_path)[0]


def test_source_only_trains_without_target(tmp_path):
    train(load_cfg(str(CONFIGS / "mini" / "source-only.yaml"), overrides(tmp_path, 2)))
    assert not any(name.startswith("alignment") for name in weights(tmp_path))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["GH.METOD", "gh"], "GH.METOD"),
        (["GH.WEIGHTING", "harmony"], "gh++"),
        (["MODEL.WEIGHTS", "nowhere.pth"], "nowhere.pth"),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "DomainAdaptiveRCNN"),
        (["DATASETS.TARGET", "()"], "DATASETS.TARGET"),
        (["DATASETS.TARGET", "('cityscapes_foggy_0.02_train',)"], "leftImg8bit_trainvaltest_foggy.zip"),
        (["SOLVER.IMS_PER_BATCH"], "SOLVER.IMS_PER_BATCH"),
        (["DATASETS.TEST", "('mini_cityscapes_vall',)"], "did you mean mini_cityscapes_val"),
        (["DATASETS.TEST", "('cityscapes_bdd_val',)"], "cityscapes_bdd_val has the classes person, rider"),
        (["DATASETS.TEST", "('cityscapes_val',)"], "leftImg8bit_trainvaltest.zip"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], "MODEL.ROI_HEADS.NUM_CLASSES is 80"),
        (["DA.BURN_IN_ITERS", "300"], "DA.BURN_IN_ITERS 300"),
        (["MODEL.DEVICE", "foo"], "MODEL.DEVICE foo: there is no such device"),
        (["MODEL.DEVICE", "cuda:99"], "MODEL.DEVICE cuda:99: torch finds"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], "SOLVER.CHECKPOINT_PERIOD must be at least 1"),
        (["TEST.EVAL_PERIOD", "-3"], "TEST.EVAL_PERIOD must be at least 0"),
        (["SOLVER.BASE_LR", "1e999"], "SOLVER.BASE_LR must be finite"),
        (["GH.TASKS.ALIGNMENT", "['*']"], "GH.TASKS takes two or more"),
        (["MODEL.RESNETS.NORM", "foo"], "Detectron2 cannot build what this configuration describes: 'foo'"),
        (
            ["MODEL.RPN.IOU_THRESHOLDS", "[0.7, 0.3]"],
            "Detectron2 cannot build what this configuration describes: assert",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, options, expected):
    with pytest.raises(SystemExit) as stopped:
        train_net.main(command("mini/da.yaml", overrides(tmp_path, 2, *GH_PLUS_PLUS, *options))[3:])
    assert stopped.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert expected in message


@pytest.mark.parametrize("flags", [[], ["--eval-only"]], ids=["train", "evaluate"])
@pytest.mark.parametrize("name", ["empty.pth", "garbage.pth", "garbage.pkl", "other.pth", "code.pkl", "folder.pth"])
def test_weights_that_cannot_be_used_are_one_line(tmp_path, capsys, flags, name):
    path = tmp_path / name
    if name.startswith("folder"):
        path.mkdir()
    elif name.startswith("other"):
        torch.save({"model": {"conv.weight": torch.zeros(3)}}, path)
    else:
        content = {"empty": b"", "garbage": b"garbage", "code": pickle.dumps(print)}
        path.write_bytes(content[path.stem])
    with pytest.raises(SystemExit) as stopped:
        train_net.main(command("mini/da.yaml", overrides(tmp_path / "run", 2, "MODEL.WEIGHTS", str(path)), *flags)[3:])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    message = captured.err.strip().splitlines()[-1]
    assert message.startswith(("error: ", f"error: MODEL.WEIGHTS {path}"))
    assert name in message
    assert "Traceback" not in captured.out + captured.err


def test_a_training_that_diverges_keeps_its_checkpoint_and_is_one_line(tmp_path, capsys):
    more = ["SOLVER.BASE_LR", "1e30", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.CLIP_GRADIENTS.ENABLED", "False"]
    with pytest.raises(SystemExit) as stopped:
        train_net.main(command("mini/da.yaml", overrides(tmp_path, 8, *more))[3:])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    message = captured.err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert message.endswith("in another OUTPUT_DIR, where MODEL.WEIGHTS may be a checkpoint of this one")
    assert "Traceback" not in captured.out + captured.err + (tmp_path / "log.txt").read_text()
    for path in tmp_path.glob("*.pth"):
        assert all(value.isfinite().all() for value in weights(tmp_path, path.name).values())


def test_a_missing_config_file_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_net.main(command("mini/nothing.yaml", overrides(tmp_path, 2))[3:])
    assert "nothing.yaml" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_configuration_of_the_package_is_found_by_its_name():
    assert load_cfg("detection/mini/da") == load_cfg(str(CONFIGS / "mini" / "da.yaml"))


@pytest.mark.parametrize("content", ["MODEL: [", "OUTPUT_DIR: !!python/object/apply:os.getcwd []"])
def test_a_configuration_loads_safely_or_not_at_all(tmp_path, content):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"bad\.yaml: not a YAML file"):
        load_cfg(str(tmp_path / "bad.yaml"))


def test_the_command_line_sets_the_tasks(tmp_path):
    words = ["GH.TASKS.ALIGNMENT", "['*_domain', 'x']", "GH.TASKS.BOXES", "('a',)", "GH.TASKS.TASK", "[]"]
    cfg = load_cfg(str(CONFIGS / "mini" / "da.yaml"), [*words, "OUTPUT_DIR", str(tmp_path)])
    assert settings_of(cfg).tasks == {"alignment": ["*_domain", "x"], "boxes": ["a"], "task": []}
    assert list(settings_of(cfg).tasks) == ["alignment", "boxes", "task"]
    for words, message in ((["GH.TASKS.ALIGNMENT", "loss_adv"], "GH.TASKS.ALIGNMENT"), (["GH.TASK", "[]"], "GH.TASK")):
        with pytest.raises(ValueError, match=f"on the command line: .*{message}"):
            load_cfg("", words)


def test_classes_of_a_coco_pair_follow_the_source(tmp_path, mini_tree):
    """Category ids in another order would be evaluated class against class without a word."""
    content = load_cityscapes(mini_tree, "val").to_coco()
    ids = {category["id"]: 9 - category["id"] for category in content["categories"]}
    for category in content["categories"]:
        category["id"] = ids[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    (tmp_path / "own.json").write_text(json.dumps(content))
    entry = f"(('own', '{tmp_path / 'own.json'}', '/'),)"
    load_cfg(str(CONFIGS / "mini" / "da.yaml"), ["DATASETS.COCO", entry, "DATASETS.TEST", "('own',)"])
    expected = load_cityscapes(mini_tree, "val")
    assert dataset_of("own").classes == expected.classes
    assert [r["annotations"] for r in dataset_of("own").records] == [r["annotations"] for r in expected.records]


C4, VGG = "['res3', 'res4']", "['vgg3', 'vgg5']"
SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml") if "native" not in path.parts)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_shipped_configurations_build_their_model(path, tmp_path):
    cfg = load_cfg(str(path), ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)])
    model = DomainAdaptiveTrainer.build_model(cfg)
    adapts = bool(cfg.DATASETS.TARGET)
    assert (getattr(model, "alignment", None) is not None) == adapts
    assert path.read_text().startswith("# ")
    expected = "sum" if adapts else "none"
    assert expected == cfg.GH.WEIGHTING
    for weighting in ("gh", "gh++"):  # a cap of the weights does not change the plain sum
        chosen = settings_of(load_cfg(str(path), ["GH.WEIGHTING", weighting]))
        assert chosen.max_weight == (10 if adapts else None)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("R50-FPN", "GH.WEIGHTING gh++:official GH.SCOPE all GH.MAX_WEIGHT None"),
        ("R50-FPN", 'DATASETS.TARGET "()" DA.METHOD none GH.WEIGHTING none'),
        ("R50-FPN", "DATASETS.TRAIN \"('cityscapes_foggy_0.02_train',)\""),
        ("R50-FPN", "DA.METHOD strong_weak DA.FEATURES \"['p2', 'p5']\""),
        ("R50-FPN", "TEACHER.ENABLED True"),
        ("R50-C4", f'DA.METHOD strong_weak DA.FEATURES "{C4}" MODEL.RESNETS.OUT_FEATURES "{C4}"'),
        ("VGG16", f'DA.METHOD strong_weak DA.FEATURES "{VGG}" MODEL.VGG.OUT_FEATURES "{VGG}"'),
    ],
)
def test_what_a_header_promises_can_be_built(name, variant, tmp_path):
    path = CONFIGS / "cityscapes_to_foggy" / f"{name}.yaml"
    header = " ".join(line[2:] for line in path.read_text().splitlines() if line.startswith("# "))
    assert variant in header
    cfg = load_cfg(str(path), ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), *shlex.split(variant)])
    settings_of(cfg)
    model = DomainAdaptiveTrainer.build_model(cfg)
    assert (model.alignment is not None) == (cfg.DA.METHOD != "none")
