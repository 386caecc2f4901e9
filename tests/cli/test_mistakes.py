"""What users get wrong: one line that names it, and exit code 2, before anything is trained or made."""

import os

import pytest
import torch

from gh_downstream.cli.main import run

DIGITS, MINI, STREETS = "classification/digits", "retrieval/mini", "detection/native/mini"
FILES = {
    "five.yaml": "_base_: 5",
    "broken.yaml": "encoder: tiny\nsource: [",
    "deep.yaml": "encoder: " + 2000 * "[",
    "list.yaml": "- encoder",
    "foreign.pt": "no checkpoint",
}


def overrides(config, *changes):
    return [(["train", "--config", config, change], words) for change, words in changes]


MISTAKES = [
    (["nothing"], ["nothing"]),
    (["--nothing"], ["--nothing"]),
    (["train"], ["--config"]),
    (["evaluate", "--config", DIGITS], ["--checkpoint"]),
    *((["train", "--config", name], [name]) for name in ("folder", "pipe.yaml", "none.yaml", *list(FILES)[:4])),
    *((["compare", "--config", name], [name]) for name in ("folder", "pipe.yaml", "none.yaml", *list(FILES)[:4])),
    *((["configs", "show", name], [name]) for name in ("folder", "pipe.yaml", "none.yaml", *list(FILES)[:4])),
    (["configs", "explain", "nothing"], ["nothing"]),
    (["train", "--config", DIGITS, "--engine", "yolo"], ["yolo", "native"]),
    (["demo", "--seeds", "-1"], ["seeds", "-1"]),
    (["demo", "--seeds", "x"], ["--seeds"]),
    (["demo", "--jobs", "0", "--only", "retrieval"], ["jobs", "0"]),
    (["demo", "--only", "x"], ["--only", "x"]),
    (["compare", "--seeds", "0"], ["seeds", "0"]),
    (["compare", "--jobs", "-1"], ["jobs", "-1"]),
    (["compare", "--steps", "0"], ["steps", "0"]),
    (["compare", "--weightings", ","], ["--weightings", "at least one weighting"]),
    (["compare", "--methods", " , "], ["--methods", "at least one method"]),
    (["compare", "--scope", ","], ["--scope", "at least one scope"]),
    (["compare", "--task", ","], ["--task", "at least one task"]),
    (["compare", "--weightings", "sum,ggh"], ["ggh"]),
    (["compare", "--methods", "nothing"], ["nothing", "dann"]),
    (["compare", "--task", "nothing"], ["nothing", "digits"]),
    (["compare", "--lambdas", "0:1:1e-9"], ["lambdas", "1e-9"]),
    (["compare", "--lambdas", "nan"], ["lambdas", "nan"]),
    (["compare", "--output", "foreign.pt"], ["foreign.pt"]),
    (["evaluate", "--config", DIGITS, "--checkpoint", "none.pt"], ["no such checkpoint: none.pt"]),
    (["evaluate", "--config", DIGITS, "--checkpoint", "pipe.yaml"], ["no such checkpoint: pipe.yaml"]),
    (["evaluate", "--config", DIGITS, "--checkpoint", "folder"], ["no such checkpoint: folder"]),
    (
        ["evaluate", "--config", DIGITS, "--checkpoint", "foreign.pt"],
        ["foreign.pt is damaged or not a checkpoint: give last.pt, best.pt or a state dict"],
    ),
    (["evaluate", "--config", DIGITS, "--checkpoint", "script.pt"], ["script.pt is a TorchScript archive"]),
    (["export", "--config", MINI, "--checkpoint", "foreign.pt", "--output", "out"], ["foreign.pt"]),
    (
        ["evaluate", "--config", MINI, "--ranks", "/proc/x.jsonl"],
        ["--ranks /proc/x.jsonl: /proc: no folder to write to"],
    ),
    (["evaluate", "--config", MINI, "--ranks", "foreign.pt/x"], ["--ranks foreign.pt/x: foreign.pt: no folder"]),
    (["evaluate", "--config", MINI, "--ranks", "folder"], ["folder is a folder"]),
    (
        ["export", "--config", MINI, "--checkpoint", "none.pt", "--output", "/proc/new"],
        ["--output /proc/new: no folder"],
    ),
    (
        ["predict", "--config", DIGITS, "--checkpoint", "none.pt", "--images", "folder", "--output", "/proc/x.csv"],
        ["--output /proc/x.csv: /proc: no folder"],
    ),
    (
        ["search", "--encoder", "tiny", "--images", "folder", "--query", "x", "--output", "/proc/x"],
        ["--output /proc/x: no folder"],
    ),
    *overrides(
        DIGITS,
        ("optimizer.lr=nan", ["override 'optimizer.lr=nan': optimizer: lr must be finite"]),
        ("method=cdann", ["error: override 'method=cdann': method is one of"]),
        ("optimizer.clip_norm=-1", ["override", "clip_norm must be above 0"]),
        ("optimizer.gamma=.inf", ["gamma must be finite"]),
        ("learning_rates={'*': nan}", ["learning_rates.* must be finite"]),
        ("training.ema=nan", ["ema must be finite"]),
        ("training.seed=-1", ["seed must be at least 0"]),
        ("training.steps=1e3", ["training.steps"]),
        ("optimizer={schedule: cosine, warmup_steps: 1000000}", ["optimizer.warmup_steps=1000000 is longer"]),
        ("method_options.cdan.trade_off=nan", ["trade_off must be finite"]),
        ("output=foreign.pt", ["output foreign.pt: no folder to write to"]),
        ("output=foreign.pt/deep/er", ["output foreign.pt/deep/er: no folder to write to"]),
        ("output=/proc/new", ["output /proc/new: no folder to write to"]),
        ("training.init_from=none.pt", ["none.pt"]),
        ("source.path=${oc.env:HOME}", ["oc.env:HOME", "another key"]),
    ),
    *overrides(
        MINI,
        ("encoder_options.width=0", ["encoder_options.width=0': encoder_options: width must be at least 1"]),
        ("encoder_options.width=8.5", ["width must be a whole number"]),
        ("encoder_options.width=wide", ["width must be a number"]),
        ("target.path=nowhere.csv", ["target: nowhere.csv does not exist"]),
        ("encoder_options.widht=8", ["widht", "width"]),
        ("alignment.mmd.weight=nan", ["alignment.mmd: weight must be finite"]),
        ("task.triplet={weight: -1}", ["task.triplet: weight must be at least 0"]),
    ),
    *overrides(
        STREETS,
        ("detector.min_size=0", ["override", "detector: min_size must be at least 1"]),
        ("detector.rpn_batch_size=0", ["rpn_batch_size must be at least 1"]),
        ("alignment.reversal_strength=inf", ["reversal_strength must be finite"]),
        ("detector.score_threshold=2", ["score_threshold must be at least 0 and at most 1"]),
    ),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1)), "script.pt")
    return tmp_path


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize(("words", "named"), MISTAKES, ids=lambda value: " ".join(value)[:60])
def test_a_mistake_is_one_line_with_its_name(folder, words, named, capsys):
    before = sorted(folder.rglob("*"))
    assert run(words) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in named), line
    assert sorted(folder.rglob("*")) == before
