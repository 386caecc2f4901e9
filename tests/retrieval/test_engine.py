"""Training and evaluation from a configuration, as gh-downstream runs them, on small mini-scenes."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from gh_downstream.cli.main import run
from gh_downstream.retrieval.batches import StepBatches
from gh_downstream.retrieval.config import RetrievalConfig
from gh_downstream.retrieval.data.mini_scenes import make_mini_scenes
from gh_downstream.retrieval.encoders.tiny import TinyDualEncoder
from gh_downstream.retrieval.engine import build_model, build_trainer, evaluate_checkpoint
from gh_downstream.training import ConfigError, load_config, parameter_groups, read_metrics
from tests.kill import lines_of
from tests.retrieval.encoders.tiny_models import open_clip_folder, transformers_folder

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "retrieval"
# Those that begin with Base are what others have in common.
SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml") if not path.stem.startswith("Base-"))
MINI = CONFIGS / "mini.yaml"
GH, GH_PLUS_PLUS = "harmonization.weighting=gh", "harmonization.weighting=gh++"
SOURCE_ONLY = ("alignment.mmd.weight=0", "harmonization.weighting=none")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("retrieval") / "scenes"
    make_mini_scenes(root, train=400, target=100, val=20, test=60, seed=1)
    return root


def overrides(scenes, output, *more):
    data = [
        f"source.path={scenes / 'source' / 'train.csv'}",
        f"validation.source.path={scenes / 'source' / 'test.csv'}",
        f"validation.target.path={scenes / 'target' / 'test.jsonl'}",
    ]
    return [*data, f"output={output}", "batch_size=32", "optimizer.warmup_steps=5", *more]


def aligned(scenes, output, *more):
    return overrides(scenes, output, f"target.path={scenes / 'target' / 'train.jsonl'}", *more)


def weights(folder):
    return torch.load(folder / "last.pt", weights_only=True)["model"]


def test_an_evaluation_has_the_precision_and_the_batches_of_the_configuration(scenes, tmp_path, monkeypatch):
    seen = set()
    for side in ("encode_image", "encode_text"):
        encode = getattr(TinyDualEncoder, side)

        def recorded(self, x, encode=encode):
            features = encode(self, x)
            seen.add((len(x), features.dtype))
            return features

        monkeypatch.setattr(TinyDualEncoder, side, recorded)
    for precision, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        changes = ["evaluation_batch_size=7", f"training.mixed_precision={precision}"]
        results = evaluate_checkpoint(load_config(RetrievalConfig, MINI, aligned(scenes, tmp_path, *changes)), None)
        assert results["source"].num_images == 60
        assert max(seen)[0] == 7
        assert {kind for _, kind in seen} == {dtype}
        seen.clear()


@pytest.mark.slow
def test_training_learns_and_evaluates(scenes, tmp_path, capsys):
    options = aligned(scenes, tmp_path, "training.steps=160", "training.evaluate_every=160", "alignment.mmd.weight=0.1")
    assert run(["train", "--config", str(MINI), GH_PLUS_PLUS, *options]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.strip().startswith(("source ", "target "))]
    assert [(row[0], row[-2]) for row in rows] == [("source", "60"), ("target", "60")]
    assert printed.count("i2t R@1 ") == (tmp_path / "results.md").read_text().count("i2t R@1 ") == 1
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert set(results) == {"source", "target"}
    # Chance is 8 % at R@5 of 60.
    assert results["source"]["metrics"]["text_to_image_R@5"] > 30
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "gh/cosine" in line]
    assert lines[-1]["loss_contrastive"] < lines[0]["loss_contrastive"]
    assert {"gh/angle", "gh/gain", "gh/weight/task", "gh/weight/alignment", "gh/conflict_rate"} <= lines[-1].keys()
    assert 1 < lines[-1]["logit_scale"] != lines[0]["logit_scale"]
    again = ["--config", str(tmp_path / "config.yaml"), "--checkpoint", str(tmp_path / "last.pt")]
    assert run(["evaluate", *again]) == 0
    assert json.loads((tmp_path / "evaluation" / "results.json").read_text())["results"] == results
    exported = ["--config", str(tmp_path / "config.yaml"), "--checkpoint", str(tmp_path / "last.pt")]
    assert run(["export", *exported, "--output", str(tmp_path / "encoder")]) == 0
    options = [f"encoder=tiny:{tmp_path / 'encoder'}", "init=pretrained", f"output={tmp_path / 'exported'}"]
    assert run(["evaluate", "--config", str(tmp_path / "config.yaml"), *options]) == 0
    assert json.loads((tmp_path / "exported" / "evaluation" / "results.json").read_text())["results"] == results


def test_every_loss_has_a_line_and_a_group(scenes, tmp_path):
    more = [
        "task.triplet.weight=0.5",
        "alignment={consistency: {weight: 0.5}, distillation: {weight: 0.1}}",
        "harmonization.tasks={start: [loss_distillation_*], mmd: [loss_mmd_image]}",
        "harmonization.tasks.task=[loss_contrastive, loss_triplet, loss_consistency_*]",
        *("training.steps=3", "optimizer.warmup_steps=0", "training.log_every=1", "training.evaluate_every=null"),
    ]
    build_trainer(load_config(RetrievalConfig, MINI, aligned(scenes, tmp_path, GH, *more))).run()
    line = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "gh/cosine" in line][-1]
    names = ("contrastive", "triplet", "mmd_image", "consistency_image", "distillation_image")
    assert line["total"] == pytest.approx(sum(line[f"loss_{name}"] for name in names))
    assert {key for key in line if key.startswith("gh/weight/")} == {
        "gh/weight/task",
        "gh/weight/start",
        "gh/weight/mmd",
    }


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["sum", "gh", "gh++"])
def test_tasks_of_one_loss_each_resume(scenes, tmp_path, weighting):
    tasks = "{start: [loss_distillation_*], mmd: [loss_mmd_*], pairs: [loss_contrastive]}"
    more = [
        "alignment.distillation.weight=0.1",
        f"harmonization={{weighting: {weighting}, tasks: {tasks}}}",
        *(
            "training.log_every=1",
            "training.evaluate_every=null",
            "optimizer.warmup_steps=0",
            "optimizer.schedule=step",
        ),
    ]
    models = []
    for name, steps in (("parts", 2), ("parts", 4), ("whole", 4)):
        options = aligned(scenes, tmp_path / name, *more, f"training.steps={steps}")
        trainer = build_trainer(load_config(RetrievalConfig, MINI, options))
        trainer.run()
        models.append(trainer.module.state_dict())
    assert all(torch.equal(models[1][name], value) for name, value in models[2].items())
    for line in [line for line in read_metrics(tmp_path / "parts" / "metrics.jsonl") if "gh/gain" in line][1:]:
        assert all(line[f"gh/norm/{task}"] > 0 for task in ("start", "mmd", "pairs"))
        assert (line["gh/gain"] == pytest.approx(1)) == (weighting == "sum" or not line["gh/conflict"])


def test_the_losses_of_the_task_are_harmonized_without_alignment(scenes, tmp_path):
    more = [
        "task.triplet.weight=0.5",
        "harmonization={weighting: gh, shared: [encoder], tasks: {pairs: [loss_triplet], batch: [loss_contrastive]}}",
        *("training.steps=1", "optimizer.warmup_steps=0", "training.evaluate_every=null"),
    ]
    config = load_config(RetrievalConfig, MINI, overrides(scenes, tmp_path, *SOURCE_ONLY, *more))
    build_trainer(config).run()
    assert {"gh/weight/pairs", "gh/weight/batch"} <= lines_of(tmp_path, "total")[0].keys()
    config.harmonization.shared = []
    config.output = str(tmp_path / "other")
    with pytest.raises(ValueError, match="shared names no parameters"):
        build_trainer(config)


@pytest.mark.parametrize("option", ["width=0", "widht=32"])
def test_a_wrong_option_of_the_encoder_is_that_of_its_override(option):
    message = f"override 'encoder_options.{option}': encoder_options: {option.partition('=')[0]}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(RetrievalConfig, MINI, ["training.seed=3", f"encoder_options.{option}"])


@pytest.mark.slow
def test_a_killed_training_resumes_bit_for_bit(scenes, tmp_path):
    more = [
        GH,
        "training.steps=24",
        "training.checkpoint_every=4",
        "harmonization.period=3",
        "training.evaluate_every=null",
    ]
    build_trainer(load_config(RetrievalConfig, MINI, aligned(scenes, tmp_path / "whole", *more))).run()
    command = [sys.executable, "tools/train_retrieval.py", "--config", str(MINI)]
    command += aligned(scenes, tmp_path / "killed", *more)
    process = subprocess.Popen(command, cwd=ROOT)
    while not (tmp_path / "killed" / "last.pt").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert run(["train", "--config", str(MINI), *aligned(scenes, tmp_path / "killed", *more)]) == 0
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert [name for name in whole if not torch.equal(whole[name], killed[name])] == []


def test_micro_batches_change_nothing_but_rounding(scenes, tmp_path):
    found = {}
    for name, more in {"whole": (), "chunks": ("micro_batch=8",)}.items():
        short = ("training.steps=3", "optimizer.warmup_steps=0", "training.evaluate_every=null")
        options = aligned(scenes, tmp_path / name, GH_PLUS_PLUS, *short, *more)
        build_trainer(load_config(RetrievalConfig, MINI, options)).run()
        found[name] = lines_of(tmp_path / name, "total")[0]
        AcceleratorState._reset_state(True)
    for key in ("loss_contrastive", "gh/cosine", "grad_norm"):
        assert found["chunks"][key] == pytest.approx(found["whole"][key], rel=1e-3)


def test_ranks_share_the_batch_of_one_process(scenes, tmp_path):
    config = load_config(RetrievalConfig, MINI, aligned(scenes, tmp_path))
    batches = build_trainer(config).batches
    assert isinstance(batches, StepBatches)
    whole, *parts = batches(5, 0, 1), batches(5, 0, 2), batches(5, 1, 2)
    for name in ("source_images", "source_tokens", "source_groups", "target_images"):
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))
    assert whole["file_names"] != batches(6, 0, 1)["file_names"]
    assert "target_tokens" not in whole


def test_freezing_and_learning_rates_go_by_pattern(scenes, tmp_path):
    config = load_config(RetrievalConfig, MINI, overrides(scenes, tmp_path, *SOURCE_ONLY))
    config.freeze, config.learning_rates = ["text.*"], {"encoder.logit_scale": 0.1}
    model = build_model(config)
    assert not any(p.requires_grad for name, p in model.encoder.named_parameters() if name.startswith("text."))
    groups = parameter_groups(model, config.optimizer, config.learning_rates)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(trained)
    (slow,) = [group for group in groups if group["name"] == "encoder.logit_scale"]
    assert slow["lr"] == pytest.approx(0.1 * config.optimizer.lr)
    assert [group["name"] for group in groups] == ["*", "*", "encoder.logit_scale"]
    assert slow["params"] == [model.encoder.logit_scale]
    assert slow["weight_decay"] == 0
    config.freeze = ["nothing.*"]
    with pytest.raises(ValueError, match="freeze: 'nothing"):
        build_model(config)


def test_a_frozen_tower_gives_the_features_that_it_came_with(scenes, tmp_path):
    pytest.importorskip("timm")
    tower = {"timm_model_name": "test_resnet", "timm_proj": "linear", "timm_drop": 0.5, "image_size": 32}
    folder = open_clip_folder(tmp_path / "timm", vision_cfg=tower)
    short = ["training.steps=3", "optimizer.warmup_steps=0", "training.evaluate_every=null", "optimizer.lr=0.01"]
    timm = ["freeze=[image.trunk.*]", f"encoder=openclip:local-dir:{folder}", "init=random"]
    options = aligned(scenes, tmp_path / "out", GH, *short, *timm)
    trainer = build_trainer(load_config(RetrievalConfig, MINI, [*options, "encoder_options={}"]))
    trunk = trainer.module.encoder.image.trunk
    pixels = torch.rand(4, 3, 32, 32)
    before, head = trunk.eval()(pixels), trainer.module.encoder.image.head.proj.weight.clone()
    trainer.run()
    assert torch.equal(trunk.eval()(pixels), before)
    assert not torch.equal(trainer.module.encoder.image.head.proj.weight, head)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["freeze=['*']"], "every parameter is frozen"),
        (["freeze=['image.*']"], "none of the parameters of encoder.image, which are shared, requires a gradient"),
        (["freeze=['image.*']", "harmonization.weighting=none"], "loss_mmd_image depends on nothing that is trained"),
        (["encoder=openclip:ViT-B-32,nowhere.pt", "init=pretrained"], "nowhere.pt"),
        (["encoder=word2vec"], "word2vec"),
        (["source.path=nowhere.csv"], "nowhere.csv"),
        (["alignment={wasserstein: {weight: 1}}"], "wasserstein"),
        (["batch_size=1"], "batch_size"),
        (["target.side=texts"], "alignment.mmd is on image features"),
        (["alignment.mmd.weight=0"], "harmonization.weighting=none"),
        (["alignment={consistency: {weight: 1, side: text}}"], "alignment.consistency adds noise to pixels"),
        (
            ["alignment={mmd: {weight: 0}, consistency: {weight: 1}}", "harmonization.measure=features"],
            "consistency encodes",
        ),
        (["task={triplet: {margin: 0.2}}"], "task.triplet.weight"),
        (["alignment={distillation: {weight: 1}}", "training.init_from=x.pt"], "training.init_from"),
        (["trainig.steps=3"], "trainig"),
        (["training.best_metric=target/R@1"], "training.best_metric is 'target/R@1', but the evaluation has source/"),
        (["training.best_metric=target/image_to_text_median_rank"], "-target/image_to_text_median_rank, "),
        (["validation.target.side=texts"], "validation.target "),
    ],
)
def test_a_mistake_is_one_line(scenes, tmp_path, capsys, options, expected):
    arguments = ["--config", str(MINI), GH_PLUS_PLUS, *aligned(scenes, tmp_path / "out"), *options]
    assert run(["train", *arguments]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert expected in message


def test_captions_that_are_left_out_or_cut_are_told(scenes, tmp_path, caplog):
    lines = (scenes / "source" / "train.csv").read_text().splitlines()[:41]
    lines[3] = lines[3].split(",")[0] + ","
    lines[5] += " and" * 100
    (scenes / "source" / "some.csv").write_text("\n".join(lines))
    options = overrides(scenes, tmp_path / "out", f"source.path={scenes / 'source' / 'some.csv'}", *SOURCE_ONLY)
    config = load_config(RetrievalConfig, MINI, [*options, "max_skipped=0.1"])
    with caplog.at_level("WARNING"):
        build_trainer(config)
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "source: 1 captions left out:\n" in told
    assert "some.csv, line 4: a text was expected in 'caption', got ''" in told
    assert "source: 1 of 39 captions that were counted are longer than the encoder reads, and are cut" in told
    config.max_skipped = 0.01
    with pytest.raises(ValueError, match=r"some.csv: 1 of 40 captions cannot be used, more than max_skipped=0.01"):
        build_trainer(config)


def test_a_target_without_captions_is_no_matter_for_any_tokenizer(scenes, tmp_path):
    folder = transformers_folder(tmp_path / "clip", "clip")
    options = aligned(scenes, tmp_path / "out", f"encoder=hf:{folder}", "init=pretrained", "encoder_options={}")
    assert build_trainer(load_config(RetrievalConfig, MINI, options)).batches.target.texts == []


def test_a_broken_image_is_named(scenes, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"not an image")
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "images/a.png,a small red circle\n" * 2)
    options = overrides(scenes, tmp_path / "out", f"source.path={tmp_path / 'pairs.csv'}", "batch_size=2", *SOURCE_ONLY)
    assert run(["train", "--config", str(MINI), *options]) == 2
    assert "a.png is not a readable image" in capsys.readouterr().err


def test_every_setting_of_a_term_can_stand_in_a_file(tmp_path):
    (tmp_path / "config.yaml").write_text(f"_base_: {MINI}\nalignment:\n  mmd:\n    weight: 0.5\n    side: text\n")
    config = load_config(RetrievalConfig, tmp_path / "config.yaml", ["alignment={coral: {weight: 0.1, side: both}}"])
    assert {name: (term.weight, term.side) for name, term in config.alignment.items()} == {
        "mmd": (0.5, "text"),
        "coral": (0.1, "both"),
    }


def test_a_term_of_weight_0_trains_as_without_alignment_and_target(scenes, tmp_path):
    short = ("training.steps=3", "optimizer.warmup_steps=0", "training.evaluate_every=null")
    off = overrides(scenes, tmp_path / "off", *SOURCE_ONLY, "target.path=not-read.jsonl", *short)
    build_trainer(load_config(RetrievalConfig, MINI, off)).run()
    content = yaml.safe_load(MINI.read_text())
    del content["target"], content["alignment"], content["harmonization"]
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(content))
    without = overrides(scenes, tmp_path / "alone", *short)
    build_trainer(load_config(RetrievalConfig, tmp_path / "alone.yaml", without)).run()
    first, second = weights(tmp_path / "off"), weights(tmp_path / "alone")
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_configurations_load(path):
    assert path.read_text().startswith("# ")
    config = load_config(RetrievalConfig, path)
    assert config.harmonization.weighting == "sum"
    for options in ([GH], [GH_PLUS_PLUS], SOURCE_ONLY):  # what the headers promise
        load_config(RetrievalConfig, path, options)
    if path.parent != CONFIGS:
        assert config.output == f"outputs/retrieval/{path.parent.name}/{path.stem}"
        assert " GiB" in " ".join(path.read_text().split("\n# "))
        assert load_config(RetrievalConfig, path, ["training.init_from=x.pt"]).terms.keys() == {"mmd"}
        keeping = load_config(RetrievalConfig, path, ["alignment.distillation.weight=1"])
        assert keeping.terms["distillation"].side == "both"
