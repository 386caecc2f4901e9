"""Training and evaluation from a configuration, as the tools run them, on the embedded digits and on list files."""

import csv
import itertools
import json
import logging
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image

from gh_downstream.classification.backbones import check_images
from gh_downstream.classification.config import ClassificationConfig
from gh_downstream.classification.engine import build_model, build_trainer, evaluate_checkpoint
from gh_downstream.classification.methods.dann import DANN
from gh_downstream.cli.main import run
from gh_downstream.training import load_config, read_metrics
from gh_downstream.training.optimization import learning_rate_factor

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "classification"
METHODS = ("source_only", "dann", "cdan", "mcd", "gvb", "dwl")
WEIGHTINGS = ("sum", "gh", "gh++")
SHORT = ["batch_size=4", "training.steps=2", "training.log_every=1", "training.evaluate_every=null"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)


def weights(folder):
    return torch.load(folder / "last.pt", weights_only=True)["model"]


def chosen(method):
    """What chooses a method on the embedded digits: the configuration and the options."""
    alone = ["harmonization.weighting=none"] if method == "source_only" else []
    return CONFIGS / ("digits-ssrt.yaml" if method == "ssrt" else "digits.yaml"), [f"method={method}", *alone]


def results(folder):
    return json.loads((folder / "results.json").read_text())["results"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_an_evaluation_has_the_precision_and_the_batches_of_the_configuration(tmp_path, monkeypatch):
    seen, classify = set(), DANN.classify

    def recorded(self, images):
        logits = classify(self, images)
        seen.add((len(images), logits.dtype))
        return logits

    monkeypatch.setattr(DANN, "classify", recorded)
    for precision, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        changes = ["method=dann", "evaluation_batch_size=100", f"training.mixed_precision={precision}"]
        config = load_config(ClassificationConfig, CONFIGS / "digits.yaml", [*changes, f"output={tmp_path}"])
        torch.save(build_model(config, 10).state_dict(), tmp_path / "weights.pt")
        evaluate_checkpoint(config, tmp_path / "weights.pt")
        assert max(seen)[0] == 100
        assert {kind for _, kind in seen} == {dtype}
        seen.clear()


@pytest.mark.slow
def test_the_tools_train_and_evaluate_as_a_user_calls_them(tmp_path, capsys):
    output = tmp_path / "cdan"
    config = ["--config", "configs/classification/digits.yaml", f"output={output}", "harmonization.weighting=gh++"]
    more = ["batch_size=32", "training.steps=25", "training.log_every=5", "training.evaluate_every=null"]
    command = [sys.executable, "tools/train_classification.py", *config, *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = [line.split() for line in done.stdout.splitlines() if line.strip().startswith(("source ", "target "))]
    found = results(output)
    assert set(found) == {"source", "target"}
    assert [[row[0], float(row[1]), row[-1]] for row in printed] == [
        [name, round(found[name]["accuracy"], 1), str(found[name]["num_images"])] for name in ("source", "target")
    ]
    assert "lowest class" in (output / "results.md").read_text()
    assert found["source"]["accuracy"] > 50  # chance is 10
    assert set(found["source"]["class_accuracy"]) == set("0123456789")
    lines = [line for line in read_metrics(output / "metrics.jsonl") if "loss_cls" in line]
    assert lines[-1]["loss_cls"] < lines[0]["loss_cls"]
    assert {"loss_domain", "gh/angle", "gh/gain", "gh/weight/task", "gh/weight/alignment", "gh/conflict_rate"} <= lines[
        -1
    ].keys()

    again = ["--config", str(output / "config.yaml"), "--checkpoint", str(output / "last.pt")]
    assert run(["evaluate", *again]) == 0
    assert results(output / "evaluation") == results(output) == found
    assert "source" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_can_be_used(path):
    config = load_config(ClassificationConfig, path)
    check_images(config.backbone, config.weights, config.transform)
    assert path.read_text().startswith("# ")
    assert config.harmonization.weighting == "sum"
    methods = ("ssrt",) if config.method == "ssrt" else METHODS
    for method, weighting in itertools.product(methods, WEIGHTINGS):  # what the headers promise
        weighting = "none" if method == "source_only" else weighting
        load_config(ClassificationConfig, path, [f"method={method}", f"harmonization.weighting={weighting}"])


# Trunk and heads after 1000 steps, decay, batch size, steps, features of the bottleneck, ramp after 1000 steps, crop.
PUBLISHED = {
    "office31": (0.001, 0.01, 0.001, 36, 8000, 256, 1.0, "random"),  # GVB's CDAN-GD, which GH's authors took
    "office31-gvb": (0.0003, 0.003, 0.001, 36, 8000, None, 1.0, "random"),  # GVB-GD
    "office31-ssrt": (0.0001, 0.001, 0.0005, 32, 10000, 1024, 0.1, "resized"),  # SSRT's main_SSRT.*.py
    "office-home": (0.001, 0.01, 0.001, 36, 8000, 256, 1.0, "random"),
    "office-home-ssrt": (0.0004, 0.004, 0.0005, 32, 20000, 2048, 0.1, "resized"),
    "visda-2017": (0.0003, 0.003, 0.001, 36, 15000, 256, 1.0, "random"),
    "visda-2017-ssrt": (0.0002, 0.002, 0.0005, 32, 20000, 1024, 0.1, "center"),
    "domainnet": (0.001, 0.01, 0.001, 32, 75000, 1024, 1.0, "resized"),  # Transfer-Learning-Library's cdan.sh
    "domainnet-ssrt": (0.0004, 0.004, 0.0005, 32, 40000, 1024, 0.1, "resized"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name):
    config = load_config(ClassificationConfig, CONFIGS / f"{name}.yaml")
    trunk, heads, decay, batch_size, steps, bottleneck, trade_off, crop = PUBLISHED[name]
    optimizer, options = config.optimizer, getattr(config.method_options, config.method)
    rates = [rate * learning_rate_factor(optimizer, 1000, steps) for rate in (1.0, *config.learning_rates.values())]
    assert [optimizer.lr * rate for rate in rates] == pytest.approx([heads * 2**-0.75, trunk * 2**-0.75])
    assert (optimizer.momentum, optimizer.nesterov, optimizer.decay_all, optimizer.weight_decay) == (
        0.9,
        True,
        True,
        decay,
    )
    assert (config.batch_size, config.training.steps, config.bottleneck, config.crop) == (
        *(batch_size, steps, bottleneck, crop),
    )
    # They count steps: 2 / (1 + exp(-step / 1000)) - 1.
    assert options.strength(1000 / steps) == pytest.approx(trade_off * (2 / (1 + math.exp(-1)) - 1))
    assert options.batch_norm if name == "domainnet" else options.dropout == 0.5


@pytest.mark.parametrize(
    ("options", "after"), [([], True), (["trade_offs=before"], False), (["harmonization.weighting=sum"], False)]
)
def test_ramps_count_after_the_weighing_by_default(options, after, tmp_path):
    options = ["harmonization.weighting=gh", *options, *SHORT, f"output={tmp_path}"]
    trainer = build_trainer(load_config(ClassificationConfig, CONFIGS / "digits.yaml", options))
    trainer.module.train()
    for _ in range(2):
        trainer.train_step(dict(trainer.batches(trainer.step, 0, 1)))
    ramp = 2 / (1 + math.exp(-5)) - 1  # of the second step of two
    assert trainer.module.trade_offs == ({"task": 1.0, "alignment": pytest.approx(ramp)} if after else {})


@pytest.mark.parametrize("method", [*METHODS, "ssrt"])
def test_every_method_trains_on_the_digits(method, tmp_path):
    path, options = chosen(method)
    options += [*SHORT, f"output={tmp_path}", "method_options.ssrt.interval=8"]
    config = load_config(ClassificationConfig, path, options)
    trainer = build_trainer(config)
    trainer.evaluate = None  # two steps are soon done, hundreds of images are not
    before = {name: parameter.clone() for name, parameter in trainer.module.named_parameters()}
    trainer.run()
    after = weights(tmp_path)
    trained = {name for name, parameter in trainer.module.named_parameters() if parameter.requires_grad}
    assert all(after[name].isfinite().all() for name in trained)
    assert not any(torch.equal(before[name], after[name]) for name in trained if name.endswith("weight"))


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """List files of images of noise: of the source, and of the target with some labels and with others."""
    folder = tmp_path_factory.mktemp("lists")
    generator = np.random.default_rng(0)
    for name, labels in {"source": (0, 1, 2), "target": (2, 0, 1)}.items():
        lines = []
        for k in range(9):
            Image.fromarray(generator.integers(0, 256, (28, 28), np.uint8)).save(folder / f"{name}{k}.png")
            lines.append(f"{name}{k}.png {labels[k % 3]}")
        (folder / f"{name}.txt").write_text("\n".join(lines))
    images = [f"target{k}.png" for k in range(9)]
    (folder / "relabelled.txt").write_text("\n".join(f"{name} {k // 3}" for k, name in enumerate(images)))
    (folder / "fewer.txt").write_text("\n".join(f"{name} {k % 2}" for k, name in enumerate(images)))
    return folder


def listed(lists, output, baseline="cdan", target="target", validation=None):
    """A configuration of two steps on list files."""
    content = {
        "output": str(output),
        "method": baseline,
        "bottleneck": 8,
        "source": {"format": "list", "path": str(lists / "source.txt")},
        "target": {"format": "list", "path": str(lists / f"{target}.txt")},
        "batch_size": 4,
        "training": {"steps": 2, "workers": 0},
    }
    if validation is not None:
        content["validation"] = {"target": {"format": "list", "path": str(lists / f"{validation}.txt")}}
    path = lists / f"{baseline}-{target}-{validation}.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("baseline", ["cdan", "mcd", "gvb", "dwl"])
def test_labels_of_the_target_never_reach_training(baseline, lists, tmp_path):
    trained = []
    for target in ("target", "relabelled"):
        config = listed(lists, tmp_path / target, baseline, target)
        trainer = build_trainer(load_config(ClassificationConfig, config))
        given = {"source_images", "source_labels", "target_images", "progress", "file_names"}
        assert set(trainer.batches(0, 0, 1)) == given
        trainer.run()
        trained.append(weights(tmp_path / target))
    assert same(*trained)


def error_of(capsys, *arguments):
    """The line that a command says of a user's mistake."""
    assert run([*arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("method", "override", "message"),
    [
        ("cdan", "method=adda", "method is one of source_only, dann, cdan, mcd, gvb, dwl, ssrt, got 'adda'"),
        (
            "cdan",
            "method_options={cdan: {entropie: false}}",
            "unknown key method_options.cdan.entropie; the keys there are hidden, hidden_layers, dropout",
        ),
        ("cdan", "backbone=alexnet", "unknown backbone 'alexnet'"),
        ("cdan", "bottleneck=0", "bottleneck must be at least 1"),
        ("cdan", "batch_size=0", "batch_size must be at least 1"),
        ("cdan", "batchsize=3", "unknown key batchsize"),
        ("cdan", "target=null", "method cdan needs images of the target: give target"),
        ("cdan", "source.path=x", "source: format=embedded has no path"),
        ("cdan", "transform=none", "transform is one of digits, photos"),
        ("cdan", "weights=gone.pth", "weights gone.pth: there is no such file"),
        ("cdan", "training.best_metric=target/top5", "training.best_metric is 'target/top5'"),
        ("cdan", "learning_rates={neck.*: 0.1}", "learning_rates: 'neck.*' fits no parameter"),
        ("cdan", "harmonization={weighting: gh, measure: features}", "leave harmonization.measure=parameters"),
        ("source_only", "harmonization.weighting=gh", "set harmonization.weighting=none"),
        ("cdan", "source_share=0.5", "only dann, cdan and gvb with separate_domains=true can leave"),
        ("mcd", "source_share=0", "only dann, cdan and gvb with separate_domains=true can leave"),
        ("cdan", "source_share=1.5", "source_share must be at least 0 and at most 1"),
        ("ssrt", "separate_domains=true", "ssrt passes both domains and what it refines as one batch"),
        ("ssrt", "backbone=digits", "ssrt refines the tokens of a vision transformer"),
        (
            "mcd",
            "method_options.mcd.generator_steps=0",
            "method_options.mcd: generator_steps must be at least 1, got 0",
        ),
        ("cdan", "method_options.adda.trade_off=1", "unknown key method_options.adda; the keys there are dann, cdan"),
        ("cdan", "method_options.cdan.trade_off=.nan", "method_options.cdan: trade_off must be finite, got nan"),
        ("cdan", "method_options.cdan.trade_off=-1", "method_options.cdan: trade_off must be at least 0, got -1"),
        ("cdan", "method_options.cdan.entropy=3.5", "method_options.cdan.entropy: true or false, got 3.5"),
        ("dann", "method_options.dann.hidden=wide", "method_options.dann.hidden: Value 'wide'"),
        ("dann", "method_options.dann.dropout=1", "method_options.dann: dropout must be at least 0 and below 1"),
        ("dann", "method_options.gvb.gamma=.inf", "method_options.gvb: gamma must be finite"),
        ("mcd", "method_options.mcd.heads.hidden=0", "method_options.mcd.heads: hidden must be at least 1"),
        ("ssrt", "method_options.ssrt.layers=[1, x]", "method_options.ssrt.layers[1]: Value 'x'"),
        ("ssrt", "method_options.ssrt.confidence=1.5", "confidence must be at least 0 and below 1"),
        ("cdan", "learning_rates={backbone.*: 0}", "learning_rates.backbone.* must be above 0, got 0"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(method, override, message, tmp_path, capsys):
    path, options = chosen(method)
    arguments = ["--config", str(path), *options, override, f"output={tmp_path}", *SHORT]
    if override == "batch_size=0":
        arguments.remove("batch_size=4")
    assert message in error_of(capsys, "train", *arguments)
    assert not (tmp_path / "last.pt").exists()


def test_classes_that_differ_are_named(lists, tmp_path, capsys):
    line = error_of(capsys, "train", "--config", listed(lists, tmp_path, validation="fewer"))
    assert "validation.target: " in line
    assert "has the classes 0, 1, the source" in line


def test_images_are_looked_at_before_the_first_step_and_read_by_check(lists, tmp_path, capsys, caplog):
    root = shutil.copytree(lists, tmp_path / "lists")
    config = ["--config", listed(root, tmp_path / "out", validation="target")]
    with caplog.at_level(logging.INFO):
        assert run(["train", *config, "--check"]) == 0
    assert "all 18 image files can be read" in caplog.text
    whole = (root / "target3.png").read_bytes()
    (root / "target3.png").write_bytes(whole[:100] + bytes(40) + whole[140:])  # what a header does not show
    assert run(["train", *config, "--check"]) == 2
    assert f"1 of 18 images cannot be read; repair them, or remove them from the data:\n{root}/target3.png" in (
        capsys.readouterr().err
    )
    (root / "target3.png").write_bytes(b"")
    assert run(["train", *config]) == 2
    assert f"{root}/target3.png is not a readable image (the file is empty)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_of_a_training_on_other_classes_are_refused(lists, tmp_path, capsys):
    config = load_config(ClassificationConfig, listed(lists, tmp_path, validation="target"))
    torch.save(build_model(config, num_classes=7).state_dict(), tmp_path / "seven.pt")
    arguments = ["--config", listed(lists, tmp_path, validation="target"), "--checkpoint", str(tmp_path / "seven.pt")]
    line = error_of(capsys, "evaluate", *arguments)
    assert "seven.pt lacks classifier" in line
    assert "it belongs to another configuration" in line


def test_a_folder_is_classified(lists, tmp_path, capsys):
    config = listed(lists, tmp_path / "run", validation="target")
    assert run(["train", "--config", config]) == 0
    photos = tmp_path / "photos"
    (photos / "deeper").mkdir(parents=True)
    for k in range(9):
        folder = photos / "deeper" if k % 2 else photos
        shutil.copy(lists / f"target{k}.png", folder / f"a, b {k}.png")
    written = tmp_path / "table.csv"
    arguments = ["predict", "--config", str(tmp_path / "run" / "config.yaml"), "--checkpoint"]
    options = ["--images", str(photos), "--output", str(written)]
    assert run([*arguments, str(tmp_path / "run" / "last.pt"), *options]) == 0
    with written.open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert set(rows) == {str(path) for path in photos.rglob("*.png")}
    assert all(row["class"] in {"0", "1", "2"} and 1 / 3 <= float(row["probability"]) <= 1 for row in rows.values())
    labels = {f"a, b {k}.png": str((2, 0, 1)[k % 3]) for k in range(9)}
    right = sum(row["class"] == labels[Path(file).name] for file, row in rows.items())
    assert 100 * right / 9 == pytest.approx(results(tmp_path / "run")["target"]["accuracy"])

    capsys.readouterr()
    line = error_of(capsys, *arguments, "gone.pt", *options)
    assert "gone.pt" in line
    line = error_of(capsys, *arguments, "gone.pt", "--images", str(tmp_path / "gone"))
    assert f"{tmp_path / 'gone'} is not a folder" in line
    (tmp_path / "empty").mkdir()
    assert "has no images (" in error_of(capsys, *arguments, "gone.pt", "--images", str(tmp_path / "empty"))
    (photos / "broken.png").write_bytes(b"no image")
    assert run([*arguments, str(tmp_path / "run" / "last.pt"), *options]) == 2
    assert "broken.png" in capsys.readouterr().err
    content = bytearray((lists / "target0.png").read_bytes())
    content[len(content) // 2] ^= 0xFF  # what the pixels are alone can tell, in a worker
    (photos / "broken.png").write_bytes(content)
    line = error_of(capsys, *arguments, str(tmp_path / "run" / "last.pt"), *options, "training.workers=1")
    assert "broken.png" in line


def test_a_folder_set_has_no_split_in_config_yaml(lists, tmp_path):
    assert run(["train", "--config", listed(lists, tmp_path)]) == 0
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written["source"]["split"] is None
    assert run(["train", "--config", str(tmp_path / "config.yaml")]) == 0  # finished, and can be read again


def test_an_evaluation_names_what_it_lacks(lists, tmp_path, capsys):
    gone = str(tmp_path / "gone.pt")
    arguments = ["--checkpoint", gone, "--config"]
    line = error_of(capsys, "evaluate", *arguments, listed(lists, tmp_path))
    assert "names no validation set" in line
    line = error_of(capsys, "evaluate", *arguments, listed(lists, tmp_path, validation="target"))
    assert gone in line
