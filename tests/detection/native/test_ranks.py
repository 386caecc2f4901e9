"""Two processes against one on the joined batch: what is alike, and what cannot be."""

import pytest
import torch

from gh_downstream.detection.data.mini_cityscapes import make_mini_cityscapes
from gh_downstream.detection.native import engine
from gh_downstream.detection.native.config import DetectionConfig
from gh_downstream.detection.native.engine import build_trainer
from gh_downstream.training import load_config
from gh_downstream.training.configs import find_config
from tests.kill import lines_of

pytestmark = pytest.mark.slow


def train(rank, data, output, regions):
    """A step; the regions that the losses are of are all there are, or samples of them."""
    changes = [f"{key}.root={data}" for key in ("source", "target", "validation.foggy")]
    changes += ["training.steps=1", "training.init_from=null", "training.log_every=1", "batch_size=4"]
    changes += [f"output={output}", "training.workers=0", "optimizer.warmup_steps=0", "optimizer.milestones=[]"]
    changes += [f"detector.{key}={regions}" for key in ("rpn_batch_size", "roi_batch_size")]
    trainer = build_trainer(load_config(DetectionConfig, find_config("detection/native/mini"), changes))
    trainer.run()
    return lines_of(output, "total")[0], trainer.module.state_dict()


def train_detr(rank, data, output):
    """A step of a small DETR whose queries for denoising, which each process would draw, are left out."""
    changes = [f"{key}.root={data}" for key in ("source", "target", "validation.foggy", "validation.clear")]
    changes += ["training.steps=1", "training.init_from=null", "training.log_every=1", "batch_size=4"]
    changes += [f"output={output}", "optimizer.warmup_steps=0", "optimizer.milestones=[]"]
    changes += ["detector.min_size=64", "detector.max_size=128", "harmonization.weighting=gh++"]
    changes += [f"detector.options.{key}={value}" for key, value in {"num_denoising": 0, "num_queries": 20}.items()]
    trainer = build_trainer(load_config(DetectionConfig, find_config("detection/native/mini-rtdetr"), changes))
    trainer.run()
    return lines_of(output, "total")[0], trainer.module.state_dict()


def test_a_detr_takes_the_step_of_one_process(ranks, tmp_path):
    """Transformers divides the losses by the number of boxes of all processes."""
    pytest.importorskip("transformers")
    make_mini_cityscapes(tmp_path / "data", train=4, val=2, height=64, width=128)
    (two, weights), (_, of_the_other) = ranks(train_detr, tmp_path / "data", tmp_path / "2", group=False)
    ((one, _),) = ranks(train_detr, tmp_path / "data", tmp_path / "1", number=1)
    assert all(torch.equal(value, of_the_other[name]) for name, value in weights.items())
    keys = [key for key in one if key.startswith(("loss_", "gh/norm"))]
    assert len(keys) == 6
    assert {key: two[key] for key in keys} == pytest.approx({key: one[key] for key in keys}, 1e-3)


def teach(rank, data, output):
    """Two steps with a teacher: its weights, and the number of its labels for each image on a rank."""
    changes = [f"{key}.root={data}" for key in ("source", "target", "validation.foggy")]
    changes += ["training.steps=2", "training.init_from=null", "training.log_every=1", "batch_size=4"]
    changes += [f"output={output}", "training.workers=0", "training.ema=0.5", "teacher.score_threshold=0.1"]
    trainer = build_trainer(load_config(DetectionConfig, find_config("detection/native/mini"), changes))
    labels = []
    trainer.module.register_forward_pre_hook(
        lambda module, given, batch: labels.append([len(x["labels"]) for x in batch.get("target_labels", ())]),
        with_kwargs=True,
    )
    trainer.run()
    return trainer._average.module.state_dict(), labels[:2]


def evaluate(rank, data, output, checkpoint):
    """The results on a rank, and how often it scored detections."""
    scored, score = [], engine.evaluate_detections
    engine.evaluate_detections = lambda *arguments: scored.append(rank) or score(*arguments)
    changes = [f"{key}.root={data}" for key in ("source", "target", "validation.foggy")]
    changes += [f"output={output}", "training.workers=0", "detector.score_threshold=0"]
    config = load_config(DetectionConfig, find_config("detection/native/mini"), changes)
    results = engine.evaluate_checkpoint(config, checkpoint)
    return {name: result.as_dict() for name, result in results.items()}, len(scored)


def test_detections_are_scored_once(ranks, tmp_path):
    make_mini_cityscapes(tmp_path / "data", train=4, val=3, height=64, width=128)
    weights = tmp_path / "weights.pt"
    changes = [f"{key}.root={tmp_path / 'data'}" for key in ("source", "target", "validation.foggy")]
    config = load_config(DetectionConfig, find_config("detection/native/mini"), [*changes, "training.init_from=null"])
    torch.save(engine.build_model(config).state_dict(), weights)
    (one, once), (other, never) = ranks(evaluate, tmp_path / "data", tmp_path / "two", weights, group=False)
    ((alone, _),) = ranks(evaluate, tmp_path / "data", tmp_path / "one", weights, number=1)
    assert one == other == alone
    assert (once, never) == (1, 0)


def test_ranks_have_the_same_teacher_and_label_what_one_process_labels(ranks, tmp_path):
    make_mini_cityscapes(tmp_path / "data", train=4, val=2, height=64, width=128)
    (one, first), (other, second) = ranks(teach, tmp_path / "data", tmp_path / "two", group=False)
    ((_, alone),) = ranks(teach, tmp_path / "data", tmp_path / "one", number=1)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert first[0] + second[0] == alone[0]
    assert sum(alone[0]) > 0


def test_the_regions_that_are_sampled_are_the_difference(ranks, tmp_path):
    """Each process draws its own of them, and the dropout of the instance discriminator; nothing else differs."""
    make_mini_cityscapes(tmp_path / "data", train=4, val=2, height=64, width=128)
    found = {}
    for regions in (64, 100_000):
        ((two, weights), (_, of_the_other)) = ranks(
            train, tmp_path / "data", tmp_path / f"2-{regions}", regions, group=False
        )
        ((one, _),) = ranks(train, tmp_path / "data", tmp_path / f"1-{regions}", regions, number=1)
        assert all(torch.equal(value, of_the_other[name]) for name, value in weights.items())
        found[regions] = two, one
    two, one = found[100_000]
    drawn = {"loss_instance_domain", "total", "grad_norm", *(key for key in one if key.startswith("gh/"))}
    assert {key: two[key] for key in one.keys() - drawn} == pytest.approx(
        {key: one[key] for key in one.keys() - drawn}, 1e-5
    )
    assert two["gh/norm/task"] == pytest.approx(one["gh/norm/task"], 1e-5)
    assert two["gh/norm/alignment"] == pytest.approx(one["gh/norm/alignment"], 1e-3)
    two, one = found[64]
    losses = [key for key in one if key.startswith("loss_")]
    assert {key: two[key] for key in losses} == pytest.approx({key: one[key] for key in losses}, 5e-3)
    assert two["gh/norm/task"] == pytest.approx(one["gh/norm/task"], 5e-2)
