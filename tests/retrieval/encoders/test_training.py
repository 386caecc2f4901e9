"""Encoders of open_clip and transformers through the engine: they learn, resume bit for bit, and are exported."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from gh_downstream.retrieval.config import RetrievalConfig
from gh_downstream.retrieval.data.mini_scenes import COLOURS, RELATIONS, SHAPES, SIZES, make_mini_scenes
from gh_downstream.retrieval.engine import build_trainer, export_encoder, load_encoder
from gh_downstream.training import load_config, read_metrics
from tests.retrieval.encoders.tiny_models import open_clip_folder, transformers_folder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "configs" / "retrieval" / "mini.yaml"
WORDS = " ".join(dict.fromkeys(" ".join(["a", *SIZES, *COLOURS, *SHAPES, *RELATIONS]).split()))
KINDS = ("open_clip", "clip", "siglip")
PAIRS = 48


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders") / "scenes"
    make_mini_scenes(root, train=PAIRS, target=PAIRS, val=4, test=4, seed=1)
    return root


def overrides(kind, folder, scenes, output, *more):
    """A training on all pairs in each step, whose recall is measured on these pairs; chance at R@1 is 2 %."""
    torch.manual_seed(0)
    encoder = folder / kind
    if kind == "open_clip":
        if not encoder.exists():
            open_clip_folder(encoder)
        spec, init = f"openclip:local-dir:{encoder}", "random"
    else:
        if not encoder.exists():
            transformers_folder(encoder, kind, words=WORDS, length=16)
        spec, init = f"hf:{encoder}", "pretrained"
    return [
        f"encoder={spec}",
        f"init={init}",
        f"source.path={scenes / 'source' / 'train.csv'}",
        f"target.path={scenes / 'target' / 'train.jsonl'}",
        f"validation.source.path={scenes / 'source' / 'train.csv'}",
        f"validation.target.path={scenes / 'target' / 'test.jsonl'}",
        f"output={output}",
        f"batch_size={PAIRS}",
        "optimizer.warmup_steps=5",
        "optimizer.lr=0.002",
        "alignment.mmd.weight=0.02",
        "training.evaluate_every=null",
        "training.log_every=1",
        "harmonization.weighting=gh++",
        *more,
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_its_export_loads_back(kind, scenes, tmp_path):
    config = load_config(
        RetrievalConfig, CONFIG, overrides(kind, tmp_path, scenes, tmp_path / "out", "training.steps=100")
    )
    metrics = build_trainer(config).run()
    assert metrics["source/mean_recall"] > 25  # chance is 11 %
    assert metrics["source/image_to_text_R@1"] > 8
    lines = [line for line in read_metrics(tmp_path / "out" / "metrics.jsonl") if "gh/cosine" in line]
    assert len(lines) == 100
    assert any(line["gh/conflict"] and line["gh/weight/task"] != 1 for line in lines)

    exported = tmp_path / "exported"
    export_encoder(config, tmp_path / "out" / "last.pt", exported)
    ours = load_encoder(config, tmp_path / "out" / "last.pt")
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = ours.tokenize(["a small red circle above a large blue star", "a large green square", ""])
    with torch.no_grad():
        if kind == "open_clip":
            import open_clip

            theirs = open_clip.create_model(f"local-dir:{exported}").eval()
            features = theirs.encode_image(pixels), theirs.encode_text(tokens)
        else:
            from transformers import AutoModel

            theirs = AutoModel.from_pretrained(exported).eval()
            features = [
                getattr(found, "pooler_output", found)
                for found in (
                    theirs.get_image_features(pixel_values=pixels),
                    theirs.get_text_features(input_ids=tokens),
                )
            ]
        torch.testing.assert_close(features[0], ours.encode_image(pixels), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features[1], ours.encode_text(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["open_clip", "clip"])
def test_a_killed_training_resumes_bit_for_bit(kind, scenes, tmp_path):
    more = ["training.steps=12", "training.checkpoint_every=3", "harmonization.period=2"]
    build_trainer(
        load_config(RetrievalConfig, CONFIG, overrides(kind, tmp_path, scenes, tmp_path / "whole", *more))
    ).run()
    options = overrides(kind, tmp_path, scenes, tmp_path / "killed", *more)
    command = [sys.executable, "tools/train_retrieval.py", "--config", str(CONFIG), *options]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    while not (tmp_path / "killed" / "last.pt").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    AcceleratorState._reset_state(True)
    trainer = build_trainer(load_config(RetrievalConfig, CONFIG, options))
    assert 0 < trainer.step < 12
    trainer.run()
    whole, killed = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "killed"))
    assert [name for name in whole["model"] if not torch.equal(whole["model"][name], killed["model"][name])] == []
