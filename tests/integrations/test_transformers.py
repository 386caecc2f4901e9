"""The mixin in the real Trainer: steps against a loop by hand, the plain Trainer, checkpoints, evaluation, refusals."""

import pytest
import torch

pytest.importorskip("transformers")

from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import Trainer

from gh_downstream import GH, GHPlusPlus, Harmonizer, Sum
from gh_downstream.integrations.transformers import STATE_FILE, GradientHarmonizationMixin
from tests.integrations.tiny_clip import SHARED, AlignedTrainer, arguments, clip, collate, losses_of, pairs, weights


@pytest.fixture(autouse=True)
def _float64():
    """transformers 4 makes its attention masks of the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class PlainTrainer(Trainer):
    """Knows nothing of harmonization: the sum of the same losses."""

    model_accepts_loss_kwargs = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        losses = losses_of(model, inputs)
        return losses["task"] + losses["alignment"]


def aligned(folder, weighting, model=None, period=1, data=16, **changes):
    return AlignedTrainer(
        model or clip(),
        arguments(folder, **changes),
        train_dataset=pairs(data),
        eval_dataset=pairs(8),
        data_collator=collate,
        weighting=weighting,
        period=period,
    )


def logged(trainer):
    """The entries of the training in the log."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def by_hand(batches, accumulation, max_norm, rate=0.05):
    """The weights after steps of SGD with the gradient of GH written out, and the weights of the last batch."""
    model = clip()
    parameters = dict(model.named_parameters())
    shared = {name for name in parameters if name.startswith(tuple(SHARED))}
    for first in range(0, len(batches), accumulation):
        gradient = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for inputs in batches[first : first + accumulation]:
            losses = losses_of(model, inputs)
            of = {
                task: torch.autograd.grad(loss, parameters.values(), retain_graph=True, materialize_grads=True)
                for task, loss in losses.items()
            }
            of = {task: dict(zip(parameters, gradients, strict=True)) for task, gradients in of.items()}
            flat = {task: torch.cat([of[task][name].flatten() for name in shared]) for task in of}
            dot, norms = flat["task"] @ flat["alignment"], {task: g.norm() for task, g in flat.items()}
            tau = {task: 1 - dot.clamp(max=0) / norms[task] ** 2 for task in of}
            for task in of:
                for name in parameters:
                    factor = tau[task] if name in shared else 1
                    gradient[name] += factor * of[task][name] / accumulation
        norm = torch.cat([g.flatten() for g in gradient.values()]).norm()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter -= rate * gradient[name] * min(1, max_norm / (norm + 1e-6))
    return weights(model), tau, losses


@pytest.mark.parametrize(("accumulation", "max_norm"), [(1, 1e9), (2, 1e9), (2, 0.5)], ids=["plain", "sums", "clips"])
def test_a_training_equals_a_loop_by_hand(tmp_path, accumulation, max_norm):
    trainer = aligned(tmp_path, GH(), gradient_accumulation_steps=accumulation, max_grad_norm=max_norm)
    trainer.train()
    assert len(trainer.batches) == 3 * accumulation
    expected, tau, losses = by_hand(trainer.batches, accumulation, max_norm)
    torch.testing.assert_close(weights(trainer.model), expected, rtol=1e-10, atol=1e-10)
    assert all(entry["gh/conflict_rate"] == 1 for entry in logged(trainer))  # There was something to get wrong.
    for task in tau:
        assert logged(trainer)[-1][f"gh/weight/{task}"] == pytest.approx(tau[task].item(), rel=1e-9)
    if accumulation == 1:
        assert logged(trainer)[-1]["gh/loss/alignment"] == pytest.approx(losses["alignment"].item(), rel=1e-6)


def test_the_log_has_means_since_the_last_entry(tmp_path):
    trainer = aligned(tmp_path, GHPlusPlus(), max_steps=4, logging_steps=2, gradient_accumulation_steps=2)
    trainer.train()
    first, second = logged(trainer)
    assert {"gh/cosine", "gh/angle", "gh/gain", "gh/norm/task", "gh/weight/alignment"} < set(first)
    for entry in (first, second):
        assert entry["loss"] == pytest.approx(
            entry["gh/loss/task"] + entry["gh/loss/alignment"], abs=1e-4
        )  # 4 rounds it.
        assert 0 <= entry["gh/conflict_rate"] <= 1
    model, seen = clip(), []
    for inputs in trainer.batches[:2]:
        seen.append({task: loss.item() for task, loss in losses_of(model, inputs).items()})
    # The first step saw the first weights: its two batches are half of the first entry's mean.
    alone = aligned(tmp_path, GHPlusPlus(), max_steps=1, gradient_accumulation_steps=2)
    alone.train()
    for task in ("task", "alignment"):
        assert logged(alone)[0][f"gh/loss/{task}"] == pytest.approx((seen[0][task] + seen[1][task]) / 2, rel=1e-6)


@pytest.mark.slow
def test_the_weighting_sum_is_the_plain_trainer_bit_for_bit(tmp_path):
    torch.set_default_dtype(torch.float32)
    data = [{k: v.float() if v.is_floating_point() else v for k, v in row.items()} for row in pairs(12)]
    changes = {"optim": "adamw_torch", "learning_rate": 1e-2, "lr_scheduler_type": "linear", "num_train_epochs": 2}
    # 3 batches in an epoch: the last step of each accumulates one alone.
    args = arguments(tmp_path, max_steps=-1, gradient_accumulation_steps=2, **changes)
    trained = []
    for kind, options in (
        (PlainTrainer, {}),
        (AlignedTrainer, {"weighting": Sum()}),
        (AlignedTrainer, {"weighting": GH()}),
    ):
        trainer = kind(clip(torch.float32), args, train_dataset=data, data_collator=collate, **options)
        trainer.train()
        trained.append(trainer)
    plain, summed, harmonized = trained
    assert torch.equal(weights(plain.model), weights(summed.model))
    assert not torch.equal(weights(plain.model), weights(harmonized.model))
    for key in ("loss", "grad_norm"):
        assert [entry[key] for entry in logged(plain)] == [entry[key] for entry in logged(summed)]
    assert "gh/cosine" in logged(summed)[0]
    assert logged(summed)[0]["gh/weight/task"] == 1


@pytest.mark.slow
def test_a_checkpoint_holds_the_weights_of_a_period(tmp_path, caplog):
    # Measured at steps 1 and 5; the checkpoint is of step 2.
    changes = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 0.01}
    whole = aligned(tmp_path, GH(), period=4, **changes)
    whole.train()
    resumed = aligned(tmp_path, GH(), period=4, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(resumed.batches) == 3
    assert torch.equal(weights(whole.model), weights(resumed.model))
    assert [e["gh/weight/task"] for e in logged(whole)] == [e["gh/weight/task"] for e in logged(resumed)]
    # A second one into the folder takes the place of the first whole, and does not write over it.
    kept = (tmp_path / "kept").resolve()
    kept.hardlink_to(tmp_path / "checkpoint-2" / STATE_FILE)
    resumed._save_optimizer_and_scheduler(str(tmp_path / "checkpoint-2"))
    assert kept.stat().st_nlink == 1
    (tmp_path / "checkpoint-2" / STATE_FILE).unlink()
    anew = aligned(tmp_path, GH(), period=4, **changes)
    anew.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert f"has no {STATE_FILE}" in caplog.text
    assert not torch.equal(weights(whole.model), weights(anew.model))


@pytest.fixture
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float32")
def test_a_detr_resumes_to_the_same_weights(tmp_path, caplog):
    """Its checkpoints have other names than the model, which the Trainer by itself does not find again."""
    detr = pytest.importorskip("tests.integrations.tiny_detr", exc_type=ImportError)

    def trainer(folder):
        changes = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
        settings = arguments(tmp_path / folder, learning_rate=0.01, **changes)
        return detr.DetrTrainer(detr.detr(), settings, train_dataset=detr.scenes(8), data_collator=detr.collate)

    whole, resumed = trainer("whole"), trainer("resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(weights(whole.model), weights(resumed.model))
    assert all("gh/angle" in entry for entry in logged(resumed))
    assert "missing keys" not in caplog.text
    best = trainer("best")
    best.state.best_model_checkpoint = str(tmp_path / "whole" / "checkpoint-4")
    best._load_best_model()
    state = whole.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in best.model.state_dict().items())


def test_evaluation_is_the_plain_sum(tmp_path):
    trainer = aligned(tmp_path, GH(), per_device_eval_batch_size=4)
    found = trainer.evaluate()["eval_loss"]
    expected = [sum(losses_of(clip(), collate(pairs(8)[k : k + 4])).values()).item() for k in (0, 4)]
    assert found == pytest.approx(sum(expected) / 2, rel=1e-6)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_predictions_are_those_of_the_model(tmp_path):
    trainer = aligned(tmp_path, GH())
    trainer.data_collator = lambda rows: collate(rows)["source"]
    found = trainer.predict(pairs(4)).predictions
    expected = clip()(**collate(pairs(4))["source"]).logits_per_image
    assert any(part.shape == expected.shape and (part == expected.detach().numpy()).all() for part in found[:2])
    assert not trainer.batches


class Classifier(torch.nn.Module):
    """Returns what a model of transformers does for a flat batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.head = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)

    def forward(self, x, labels=None):
        logits = self.head(self.trunk(x))
        loss = {} if labels is None else {"loss": torch.nn.functional.cross_entropy(logits, labels)}
        return loss | {"logits": logits}


def test_metrics_of_batches_with_labels_are_the_trainers(tmp_path):
    class Adapted(GradientHarmonizationMixin, Trainer):
        def compute_losses(self, model, inputs):
            return {"task": model(**inputs["source"])["loss"], "alignment": model.trunk(inputs["target"]).mean() ** 2}

        def create_harmonizer(self, model):
            return Harmonizer(GH(), model.trunk)

    generator = torch.Generator().manual_seed(0)
    rows = [{"x": torch.randn(3, generator=generator), "labels": k % 2} for k in range(6)]
    options = {"compute_metrics": lambda found: {"accuracy": (found.predictions.argmax(1) == found.label_ids).mean()}}
    trainers = [kind(Classifier(), arguments(tmp_path), eval_dataset=rows, **options) for kind in (Adapted, Trainer)]
    mine, plain = [trainer.evaluate() for trainer in trainers]
    for key in ("eval_loss", "eval_accuracy"):
        assert mine[key] == plain[key]
    mine, plain = [trainer.predict(rows) for trainer in trainers]
    assert (mine.predictions == plain.predictions).all()
    assert (mine.label_ids == plain.label_ids).all()
    assert mine.metrics["test_loss"] == plain.metrics["test_loss"]


def test_a_loss_scaler_scales_the_gradient_and_leaves_the_weights(tmp_path):
    gradients = []
    for scale in (1, 1024):
        trainer = aligned(tmp_path, GH())
        trainer.current_gradient_accumulation_steps = 1
        trainer.create_optimizer()
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=float(scale))
        trainer.training_step(trainer.model, collate(pairs(4)))
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]) / scale)
        assert (trainer.joint_loss.harmonizer.report.weights > 1).all()
    assert torch.equal(*gradients)


def test_bf16_reaches_the_parts_of_the_model(tmp_path):
    torch.set_default_dtype(torch.float32)
    seen = []

    class Watching(AlignedTrainer):
        def compute_losses(self, model, inputs):
            handle = model.visual_projection.register_forward_hook(lambda m, x, y: seen.append(y.dtype))
            losses = super().compute_losses(model, inputs)
            handle.remove()
            return losses

    data = [{k: v.float() if v.is_floating_point() else v for k, v in row.items()} for row in pairs(4)]
    args = arguments(tmp_path, bf16=True, max_steps=1)
    trainer = Watching(clip(torch.float32), args, train_dataset=data, data_collator=collate, weighting=GH())
    trainer.train()
    assert seen == [torch.bfloat16] * 2
    assert torch.isfinite(weights(trainer.model)).all()


def test_each_model_gets_its_harmonizer(tmp_path):
    trainer = AlignedTrainer(
        args=arguments(tmp_path), train_dataset=pairs(), data_collator=collate, weighting=GH(), model_init=clip
    )
    trainer.train()
    first = trainer.model
    trainer.train()
    assert trainer.model is not first
    assert torch.equal(weights(trainer.model), weights(first))


def test_mistakes_are_told(tmp_path):
    with pytest.raises(TypeError, match=r"comes first, class Wrong\(GradientHarmonizationMixin, Trainer\)"):
        type("Wrong", (Trainer, GradientHarmonizationMixin), {})
    with pytest.raises(TypeError, match=r"compute_loss of Own is not that of the .*compute_losses"):
        type("Own", (AlignedTrainer,), {"compute_loss": PlainTrainer.compute_loss})
    with pytest.raises(ValueError, match="return the losses by name from compute_losses"):
        AlignedTrainer(clip(), arguments(tmp_path), weighting=GH(), compute_loss_func=lambda *_: None)
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match="torchrun --nproc_per_node 2"):
        AlignedTrainer(clip(), args, weighting=GH())


def test_sharded_training_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType.FSDP))
    with pytest.raises(ValueError, match=r"cannot be measured under FSDP.*fork"):
        aligned(tmp_path, GH())


def test_mistakes_in_the_methods_are_told(tmp_path):
    def training(**methods):
        kind = type("Mine", (GradientHarmonizationMixin, Trainer), methods)
        return kind(clip(), arguments(tmp_path), train_dataset=pairs(), data_collator=collate)

    def harmonizer(self, model):
        return Harmonizer(GH(), SHARED, model=model)

    def losses(self, model, inputs):
        return losses_of(model, inputs)

    cases = [
        (NotImplementedError, r"Mine has to define compute_losses\(self, model, inputs\)", {}),
        (NotImplementedError, r"Mine has to define create_harmonizer\(self, model\)", {"compute_losses": losses}),
        (
            TypeError,
            "losses by task, got Tensor",
            {
                "compute_losses": lambda self, model, inputs: losses_of(model, inputs)["task"],
                "create_harmonizer": harmonizer,
            },
        ),
        (
            ValueError,
            "loss 'alignment' reaches no shared parameter",
            {
                "compute_losses": lambda self, model, inputs: (
                    losses_of(model, inputs) | {"alignment": model.logit_scale.square()}
                ),
                "create_harmonizer": harmonizer,
            },
        ),
    ]
    for kind, message, methods in cases:
        with pytest.raises(kind, match=message):
            training(**methods).train()
