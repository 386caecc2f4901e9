"""What the loop does in one process."""

import logging
import math

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState
from packaging.version import Version
from torch.utils._python_dispatch import TorchDispatchMode

from gh_downstream import GH, GHPlusPlus, Harmonizer
from gh_downstream.training import (
    CheckpointError,
    ExperimentConfig,
    build_optimizer,
    load_checkpoint,
    load_config,
    read_metrics,
)
from gh_downstream.training.finite import FiniteCheck
from gh_downstream.training.optimization import learning_rate_factor
from tests.kill import lines_of
from tests.training import toy


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps one precision for the process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def weights(folder, name="last.pt"):
    return load_checkpoint(folder / name)["model"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("harmonized", [True, False])
def test_equals_a_loop_written_out_by_hand(tmp_path, harmonized):
    settings = toy.config(
        tmp_path,
        steps=9,
        harmonization={"weighting": "gh++" if harmonized else "none", "warmup_steps": 4},
        optimizer={"clip_norm": 0.5},
    )
    batches = toy.Batches(noise=0.0)
    trainer = toy.trainer(settings, toy.Toy(random_layers=False), batches)
    trainer.run()

    model = toy.Toy(random_layers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.0001)
    harmonizer = Harmonizer(GHPlusPlus(), model.trunk)
    for step in range(9):
        batch = batches(step, 0, 1)
        sides = model(batch["source"], batch["labels"], batch["target"])
        task, alignment = sides["task"]["mse"] + sides["task"]["l1"], sides["alignment"]["domain"]
        if harmonized and step >= 4:
            harmonizer.backward({"task": task, "alignment": alignment})
        else:
            (task + alignment).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = 0.05 * min(1, (step + 1) / 3) * (0.1 if step >= 8 else 1)
        optimizer.step()
        optimizer.zero_grad()
    assert same(weights(tmp_path), model.state_dict())


def test_gradients_that_are_not_clipped_are_not_multiplied(tmp_path):
    class InPlace(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function.__name__.startswith(("mul_", "_foreach_mul_"))
            return function(*args, **(kwargs or {}))

    counts = {}
    for clip_norm in (None, 1e9):
        settings = toy.config(tmp_path / str(clip_norm), steps=1, optimizer={"clip_norm": clip_norm})
        with InPlace() as mode:
            toy.trainer(settings).run()
        counts[clip_norm] = mode.count
    assert counts[None] < counts[1e9]
    assert same(weights(tmp_path / "None"), weights(tmp_path / "1000000000.0"))


TASKS = {"shrink": ["l1"], "fit": ["m?e"], "align": ["dom*"]}


def test_tasks_equal_a_loop_written_out_by_hand(tmp_path):
    settings = toy.config(tmp_path, steps=9, harmonization={"weighting": "gh", "tasks": TASKS, "warmup_steps": 2})
    batches = toy.Batches(noise=0.0)
    toy.trainer(settings, toy.Toy(random_layers=False), batches).run()

    model = toy.Toy(random_layers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.0001)
    harmonizer = Harmonizer(GH(), model.trunk, tasks=("shrink", "fit", "align"))
    harmonized = []
    for step in range(9):
        batch = batches(step, 0, 1)
        sides = model(batch["source"], batch["labels"], batch["target"])
        losses = {"fit": sides["task"]["mse"], "shrink": sides["task"]["l1"], "align": sides["alignment"]["domain"]}
        if step >= 2:
            harmonized.append(harmonizer.backward(losses).as_dict())
        else:
            (losses["align"] + losses["fit"] + losses["shrink"]).backward()
        optimizer.param_groups[0]["lr"] = 0.05 * min(1, (step + 1) / 3) * (0.1 if step >= 8 else 1)
        optimizer.step()
        optimizer.zero_grad()
    assert any(report["weight/shrink"] > 1.01 for report in harmonized)  # They were in conflict.
    assert same(weights(tmp_path), model.state_dict())
    last = _trained(tmp_path)[-1]
    assert {key: last[f"gh/{key}"] for key in harmonized[-1]} == harmonized[-1]


def test_tasks_that_are_the_sides_of_the_model_change_nothing(tmp_path):
    divided = {"tasks": {"alignment": ["*domain*"], "task": []}, "weighting": "gh++:official"}
    toy.trainer(toy.config(tmp_path / "divided", harmonization=divided)).run()
    toy.trainer(toy.config(tmp_path / "sides", harmonization={"weighting": "gh++:official"})).run()
    assert same(weights(tmp_path / "divided"), weights(tmp_path / "sides"))
    assert _trained(tmp_path / "divided") == _trained(tmp_path / "sides")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"task": ["mse"], "alignment": ["domain"]}}, "'l1' to none of the tasks task, alignment"),
        ({"tasks": {"task": ["*"], "alignment": ["domain"]}}, "'domain' to the tasks task and alignment"),
        (
            {"tasks": TASKS | {"align": ["domain", "mmd"]}},
            r"tasks\.align: 'mmd' fits no loss; the losses are mse, l1,",
        ),
        ({"shared": ["head"]}, "loss 'align' reaches no shared parameter"),
        ({"weighting": "gh++:official"}, "the published GH\\+\\+ weighs two tasks"),
    ],
)
def test_a_mistake_in_the_tasks_is_named(tmp_path, changes, message):
    settings = toy.config(tmp_path, harmonization={"weighting": "gh", "tasks": TASKS} | changes)
    with pytest.raises(ValueError, match=message):
        toy.trainer(settings).run()
    assert not (tmp_path / "last.pt").exists()


def test_other_tasks_are_not_resumed(tmp_path):
    toy.trainer(toy.config(tmp_path, steps=3, harmonization={"tasks": TASKS})).run()
    other = {"tasks": TASKS | {"fit": ["mse"]}}
    with pytest.raises(CheckpointError, match=r"harmonization\.tasks\.fit was \['m\?e'\] and is \['mse'\]"):
        toy.trainer(toy.config(tmp_path, steps=6, harmonization=other))


def test_metrics_name_every_loss_and_the_harmonization(tmp_path):
    result = toy.trainer(toy.config(tmp_path, steps=7, log_every=3)).run()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    trained = [line for line in lines if "total" in line]
    assert [line["step"] for line in trained] == [3, 6, 7]
    expected = {
        "mse",
        "l1",
        "domain",
        "total",
        "lr",
        "grad_norm",
        "gh/cosine",
        "gh/angle",
        "gh/gain",
        "gh/conflict_rate",
    }
    expected |= {f"gh/{kind}/{task}" for kind in ("norm", "weight") for task in ("task", "alignment")}
    for line in trained:
        assert expected <= line.keys()
        assert not any(name.startswith("lr/") for name in line)
        assert line["total"] == pytest.approx(line["mse"] + line["l1"] + line["domain"])
        assert 0 <= line["gh/conflict_rate"] <= 1
    assert lines[-1] == {"step": 7, **result}


def test_the_configuration_lies_beside_the_result(tmp_path):
    settings = toy.config(tmp_path, steps=1)
    toy.trainer(settings).run()
    assert load_config(ExperimentConfig, tmp_path / "config.yaml") == settings


def test_conflict_rate_counts_the_steps_since_the_last_line(tmp_path):
    toy.trainer(toy.config(tmp_path / "each", log_every=1)).run()
    toy.trainer(toy.config(tmp_path / "sixth", log_every=6)).run()
    conflicts = [line["gh/conflict"] for line in read_metrics(tmp_path / "each" / "metrics.jsonl") if "total" in line]
    assert 0 < sum(conflicts) < 18
    rates = [line["gh/conflict_rate"] for line in read_metrics(tmp_path / "sixth" / "metrics.jsonl") if "total" in line]
    assert rates == pytest.approx([sum(conflicts[i : i + 6]) / 6 for i in (0, 6, 12)])


def test_features_are_harmonized_inside_the_model(tmp_path):
    settings = toy.config(tmp_path, harmonization={"measure": "features"})
    model = toy.Toy(random_layers=False, forked=True)
    toy.trainer(settings, model).run()
    assert model.measurements.total == 18
    assert all({"gh/angle", "gh/weight/task", "gh/conflict_rate"} <= line.keys() for line in _trained(tmp_path))

    with pytest.raises(ValueError, match="needs a model that forks its features"):
        toy.trainer(settings, toy.Toy())


def test_neither_cadence_nor_workers_change_the_weights(tmp_path):
    toy.trainer(toy.config(tmp_path / "one")).run()
    other = toy.config(tmp_path / "other", log_every=1, evaluate_every=1, checkpoint_every=100, workers=2)
    toy.trainer(other).run()
    assert same(weights(tmp_path / "one"), weights(tmp_path / "other"))


@pytest.mark.parametrize("warmup", [0, 4])
def test_what_is_harmonized_is_logged_once(tmp_path, caplog, warmup):
    caplog.set_level(logging.INFO)
    for weighting in ("gh++", "none"):
        settings = {"weighting": weighting, "warmup_steps": warmup}
        toy.trainer(toy.config(tmp_path / weighting, steps=10, harmonization=settings)).run()
    (told,) = [record.message for record in caplog.records if record.message.startswith("GH: ")]
    assert told == "GH: gh++; task: mse, l1; alignment: domain; shared: trunk, 128 parameters"


def test_a_finished_run_says_so_and_more_steps_continue_it(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first = toy.trainer(toy.config(tmp_path / "a", steps=10))
    metrics = first.run()
    before = (tmp_path / "a" / "last.pt").stat().st_mtime_ns
    assert toy.trainer(toy.config(tmp_path / "a", steps=10)).run() == metrics
    assert "already finished at step 10" in caplog.text
    assert (tmp_path / "a" / "last.pt").stat().st_mtime_ns == before

    toy.trainer(toy.config(tmp_path / "a", steps=18)).run()
    toy.trainer(toy.config(tmp_path / "b", steps=18)).run()
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_another_configuration_is_not_resumed(tmp_path):
    toy.trainer(toy.config(tmp_path, optimizer={"schedule": "cosine", "milestones": []})).run()
    other = toy.config(tmp_path, steps=30, seed=6, optimizer={"schedule": "cosine", "milestones": [], "lr": 1.0})
    with pytest.raises(CheckpointError) as caught:
        toy.trainer(other)
    for part in (
        "last.pt",
        "training.seed was 5 and is 6",
        "optimizer.lr was 0.05 and is 1.0",
        "training.steps was 18",
    ):
        assert part in str(caught.value)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        toy.trainer(
            toy.config(tmp_path, optimizer={"schedule": "cosine", "milestones": []}), toy.Toy(random_layers=False)
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loss_that_is_not_finite_stops_before_anything_changes(tmp_path, workers):
    model = toy.Toy()
    trainer = toy.trainer(toy.config(tmp_path, workers=workers), model, toy.Batches(broken_step=7))
    with pytest.raises(ValueError, match=r"^mse is nan at step 8 \(files \d\.png, \d\.png, \d\.png, \d\.png\); "):
        trainer.run()
    with pytest.raises(ValueError, match=r"^mse is nan at step 1 \(files 0, 1, 2, 3, 4 and 60 more\); nothing of it"):
        FiniteCheck(trainer.accelerator, "out").watch(
            1, {"mse": torch.tensor(math.nan)}, [*"0123456789"[:5], *["x"] * 60]
        )
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 6
    toy.trainer(toy.config(tmp_path)).run()
    toy.trainer(toy.config(tmp_path / "whole")).run()
    assert same(weights(tmp_path), weights(tmp_path / "whole"))


def test_a_gradient_that_is_not_finite_stops_too(tmp_path):
    model = toy.Toy()
    model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(ValueError, match=r"gradient norm is (inf|nan) at step 1 "):
        toy.trainer(toy.config(tmp_path), model).run()
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_the_data_keeps_its_one_line(tmp_path, workers):
    def broken(step, rank, ranks):
        raise FileNotFoundError("no such image: a.png")

    with pytest.raises(FileNotFoundError, match=r"^no such image: a\.png$"):
        toy.trainer(toy.config(tmp_path, workers=workers), batches=broken).run()


def test_nothing_to_harmonize_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"weighting is gh\+\+, but step 1 has only task losses"):
        toy.trainer(toy.config(tmp_path / "a"), toy.Toy(aligned=False)).run()
    toy.trainer(toy.config(tmp_path / "b", harmonization={"weighting": "none"}), toy.Toy(aligned=False)).run()
    assert all("gh/angle" not in line for line in _trained(tmp_path / "b"))


def test_a_metric_may_be_best_when_low(tmp_path):
    toy.trainer(toy.config(tmp_path, best_metric="-score")).run()
    scores = [line["score"] for line in read_metrics(tmp_path / "metrics.jsonl") if "score" in line]
    assert load_checkpoint(tmp_path / "best.pt")["metrics"]["score"] == min(scores)


def test_figures_of_the_model_are_in_each_line(tmp_path):
    class Shown(toy.Toy):
        @property
        def figures(self):
            return {"bias": self.head.bias}

    model = Shown()
    toy.trainer(toy.config(tmp_path, steps=2, log_every=1, evaluate_every=None), model).run()
    assert _trained(tmp_path)[-1]["bias"] == model.head.bias.item() != _trained(tmp_path)[0]["bias"]


def test_best_weights_follow_the_named_metric(tmp_path):
    with pytest.raises(ValueError, match="best_metric is 'AP50'; the evaluation has score"):
        toy.trainer(toy.config(tmp_path, best_metric="AP50")).run()
    toy.trainer(toy.config(tmp_path, best_metric="score")).run()
    scores = {line["step"]: line["score"] for line in read_metrics(tmp_path / "metrics.jsonl") if "score" in line}
    best = load_checkpoint(tmp_path / "best.pt")
    assert best["metrics"]["score"] == scores[best["step"]] == max(scores.values())
    model = toy.Toy()
    model.load_state_dict(best["model"])
    with torch.no_grad():
        assert toy.evaluate(model.eval())["score"] == max(scores.values())


def scores_of(folder):
    return {line["step"]: line["score"] for line in lines_of(folder, "score")}


def test_what_a_training_starts_from_is_evaluated_as_step_0(tmp_path):
    for first in (None, True, False):
        for every in (None, 4, 18):
            folder = tmp_path / f"{first} {every}"
            toy.trainer(toy.config(folder, evaluate_first=first, evaluate_every=every)).run()
            scores = scores_of(folder)
            assert (0 in scores) == (every == 4 if first is None else first)
            assert scores.get(0) in (None, toy.evaluate(toy.Toy().eval())["score"])
            assert same(weights(folder), weights(tmp_path / "None None"))
    with_ema = toy.trainer(toy.config(tmp_path / "ema", ema=0.9))
    with_ema.run()
    assert scores_of(tmp_path / "ema")[0] == scores_of(tmp_path / "None 4")[0]
    toy.trainer(toy.config(tmp_path / "last", init_from=str(tmp_path / "None 4" / "last.pt"))).run()
    assert scores_of(tmp_path / "last")[0] == scores_of(tmp_path / "None 4")[18]


def test_step_0_is_never_the_best(tmp_path):
    trainer = toy.trainer(toy.config(tmp_path, best_metric="score"))
    trainer.evaluate = lambda model: {"score": -trainer.step}
    trainer.run()
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 4


def test_step_0_is_there_once_after_whatever_stops_a_training(tmp_path):
    """Before there is a checkpoint it begins anew; at step 1, the evaluation of which fails, it goes on."""
    settings = toy.config(tmp_path, evaluate_every=1)
    for score in (1.0, 2.0):
        trainer = toy.trainer(settings, batches=toy.Batches(broken_step=0 if score == 1.0 else None))

        def evaluate(model, trainer=trainer, score=score):
            if trainer.step:
                raise ValueError("the evaluation fails")
            return {"score": score}

        trainer.evaluate = evaluate
        with pytest.raises(ValueError, match=r"mse is nan|the evaluation fails"):
            trainer.run()
    toy.trainer(settings).run()
    lines = lines_of(tmp_path, "score")
    assert [line["step"] for line in lines] == list(range(19))
    assert lines[0]["score"] == 2.0


def test_images_a_second_are_in_each_line(tmp_path):
    toy.trainer(toy.config(tmp_path)).run()
    assert all(line["images_per_second"] > 0 for line in read_metrics(tmp_path / "metrics.jsonl") if "total" in line)


def test_a_stage_starts_from_the_weights_of_another(tmp_path):
    toy.trainer(toy.config(tmp_path / "a")).run()
    model = toy.Toy()
    settings = toy.config(tmp_path / "b", steps=1, init_from=str(tmp_path / "a" / "last.pt"), seed=9)
    trainer = toy.trainer(settings, model)
    assert same(model.state_dict(), weights(tmp_path / "a"))
    trainer.run()
    assert not same(model.state_dict(), weights(tmp_path / "a"))
    # A resumed stage goes on from its own weights.
    toy.trainer(settings, resumed := toy.Toy())
    assert same(resumed.state_dict(), weights(tmp_path / "b"))


def test_bf16(tmp_path):
    seen = []
    model = toy.Toy(random_layers=False)
    model.trunk[0].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    toy.trainer(toy.config(tmp_path, mixed_precision="bf16"), model).run()
    assert set(seen) == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in weights(tmp_path).values())


def test_fp16_needs_a_gpu(tmp_path):
    with pytest.raises(ValueError, match="mixed_precision=fp16 needs a GPU; use bf16 or no"):
        toy.trainer(toy.config(tmp_path, mixed_precision="fp16"))


@pytest.mark.skipif(Version(accelerate.__version__) < Version("1.13"), reason="accelerate before 1.13 sees them")
def test_processes_that_accelerate_does_not_see_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    with pytest.raises(ValueError, match="sees 1 process, the launcher started 2"):
        toy.trainer(toy.config(tmp_path))


@pytest.mark.parametrize("method", ["gh++", "none"])
def test_a_loss_scaler_skips_an_overflow_and_resumes(tmp_path, method):
    """fp16 itself runs on a GPU only; its loss scaler runs here, on losses in float32."""

    def plain(folder, **settings):
        settings = toy.config(folder, harmonization={"weighting": method}, **settings)
        return toy.trainer(settings, toy.Toy(random_layers=False), toy.Batches(noise=0.0))

    def scaled(folder, overflow_at=None, **settings):
        trainer = plain(folder, **settings)
        accelerator = trainer.accelerator
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        accelerator._optimizers.clear()
        trainer.optimizer = accelerator.prepare_optimizer(trainer.optimizer.optimizer)
        calls = []

        def overflow(gradient):
            calls.append(None)
            return gradient * float("inf") if len(calls) == overflow_at else gradient

        trainer.module.head.weight.register_hook(overflow)
        return trainer, trainer.module

    plain(tmp_path / "plain").run()
    AcceleratorState._reset_state(True)
    trainer, model = scaled(tmp_path / "scaled")
    trainer.run()
    for name, value in weights(tmp_path / "plain").items():
        torch.testing.assert_close(model.state_dict()[name], value)

    AcceleratorState._reset_state(True)
    trainer, model = scaled(tmp_path / "overflow", overflow_at=1, steps=1)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer.run()
    assert same(dict(model.named_parameters()), before)
    assert load_checkpoint(tmp_path / "overflow" / "last.pt")["scaler"]["scale"] == 2.0**9


def test_learning_rate_over_the_steps():
    settings = toy.config("x").optimizer
    factors = [learning_rate_factor(settings, step, 12) for step in range(12)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1])
    cosine = toy.changed(toy.config("x"), "optimizer", schedule="cosine", milestones=[], warmup_steps=2).optimizer
    falling = [learning_rate_factor(cosine, step, 12) for step in range(12)]
    assert falling[:3] == [0.5, 1, 1]
    assert falling[7] == pytest.approx(0.5)
    assert falling[1:] == sorted(falling[1:], reverse=True)
    assert 0 < falling[-1] < 0.05


def test_groups_keep_their_ratio(tmp_path):
    model = toy.Toy()
    settings = toy.config(tmp_path, steps=2, optimizer={"name": "adamw"})
    groups = [{"params": model.trunk.parameters()}, {"params": model.head.parameters(), "lr": 0.5, "name": "head"}]
    trainer = toy.Trainer(settings, model, build_optimizer(settings.optimizer, groups), toy.Batches())
    assert trainer.run() == {}
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([0.05 * 2 / 3, 0.5 * 2 / 3])
    line = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert [line["lr"], line["lr/0"], line["lr/head"]] == pytest.approx([rates[0], *rates])


def _trained(folder):
    return lines_of(folder, "total")
