"""The mixin in the real Trainer of Lightning: a loop by hand, the plain module, checkpoints, precision, refusals."""

import pytest
import torch

pytest.importorskip("lightning")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from gh_downstream import GH, Sum
from gh_downstream.integrations.lightning import STATE_KEY, GradientHarmonizationMixin
from tests.integrations.tiny_lightning import Adapted, Plain, fit, losses_of, rows, weights


def logged(trainer):
    """The entries of the log, as written."""
    return [entry for entry in trainer.logger.entries if any(key.startswith("gh/") for key in entry)]


def by_hand(batches, accumulation, max_norm, rate=0.05):
    """The weights after steps of SGD with the gradient of GH written out, and the weights of the last batch."""
    model = Adapted()
    parameters = dict(model.named_parameters())
    shared = [name for name in parameters if name.startswith("backbone")]
    for start in range(0, len(batches), accumulation):
        gradient = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for batch in batches[start : start + accumulation]:
            losses = losses_of(model, batch)
            of = {
                task: dict(
                    zip(
                        parameters,
                        torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, materialize_grads=True),
                        strict=True,
                    )
                )
                for task, loss in losses.items()
            }
            flat = {task: torch.cat([of[task][name].flatten() for name in shared]) for task in of}
            dot = flat["task"] @ flat["alignment"]
            tau = {task: 1 - dot.clamp(max=0) / flat[task].square().sum() for task in of}
            for task in of:
                for name in parameters:
                    factor = tau[task] if name in shared else 1
                    gradient[name] += factor * of[task][name] / accumulation
        norm = torch.cat([g.flatten() for g in gradient.values()]).norm()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter -= rate * gradient[name] * min(1, max_norm / (norm + 1e-6))
    return weights(model), tau, losses


@pytest.mark.parametrize(("accumulation", "max_norm"), [(1, 1e9), (2, 1e9), (2, 0.1)], ids=["plain", "sums", "clips"])
def test_a_training_equals_a_loop_by_hand(tmp_path, accumulation, max_norm):
    model = Adapted(GH())
    trainer = fit(model, tmp_path, accumulate_grad_batches=accumulation, gradient_clip_val=max_norm)
    assert trainer.global_step == 4 // accumulation
    expected, tau, losses = by_hand([rows(16)[k : k + 4] for k in range(0, 16, 4)], accumulation, max_norm)
    torch.testing.assert_close(weights(model), expected, rtol=1e-10, atol=1e-12)
    entries = logged(trainer)
    assert len(entries) == trainer.global_step
    assert all(entry["gh/conflict_rate"] == 1 for entry in entries)  # There was something to get wrong.
    for task in tau:
        assert entries[-1][f"gh/weight/{task}"] == pytest.approx(tau[task].item(), rel=1e-6)
    if accumulation == 1:
        assert entries[-1]["gh/loss/alignment"] == pytest.approx(losses["alignment"].item(), rel=1e-6)


def test_the_log_has_means_since_the_last_entry(tmp_path):
    trainer = fit(Adapted(GH()), tmp_path, accumulate_grad_batches=2, log_every_n_steps=2, max_epochs=2)
    assert [entry["step"] for entry in logged(trainer)] == [1, 3]
    first = logged(trainer)[0]
    assert {"gh/cosine", "gh/angle", "gh/gain", "gh/norm/task", "gh/weight/alignment", "gh/loss/task"} < set(first)
    assert 0 < first["gh/conflict_rate"] <= 1
    every = [logged(fit(Adapted(GH()), tmp_path / "every", accumulate_grad_batches=2))[k] for k in (0, 1)]
    for task in ("task", "alignment"):
        mean = sum(entry[f"gh/loss/{task}"] for entry in every) / 2
        assert first[f"gh/loss/{task}"] == pytest.approx(mean, rel=1e-6)
    assert not logged(fit(Adapted(GH()), tmp_path / "none", log_every_n_steps=0))


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_the_weighting_sum_is_the_plain_training_bit_for_bit(tmp_path, interval):
    settings = {"accumulate_grad_batches": 3, "gradient_clip_val": 0.3, "max_epochs": 3}
    trained = []
    for model in (Plain(interval=interval), Adapted(Sum(), interval=interval), Adapted(GH(), interval=interval)):
        trainer = fit(model, tmp_path, **settings)
        trained.append(weights(model))
        assert trainer.global_step == 6  # The last batch of each epoch is a step of its own.
        assert trainer.optimizers[0].param_groups[0]["lr"] < 0.05
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_a_checkpoint_holds_the_weights_of_a_period(tmp_path, caplog):
    # Measured at steps 1 and 5; the checkpoint is of step 4, the end of the first epoch.
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1)
    whole = Adapted(GH(), period=5, optimizer="adamw")
    fit(whole, tmp_path, max_epochs=2, callbacks=[checkpoint], enable_checkpointing=True)
    path = str(tmp_path / "epoch=0-step=4.ckpt")
    assert torch.load(path, weights_only=True)[STATE_KEY]["calls"] == 4
    resumed = Adapted(GH(), period=5, optimizer="adamw")
    trainer = fit(resumed, tmp_path, max_epochs=2, ckpt_path=path)
    assert trainer.global_step == 8
    assert torch.equal(weights(whole), weights(resumed))
    state = torch.load(path, weights_only=True)
    del state[STATE_KEY]
    torch.save(state, path)
    anew = Adapted(GH(), period=5, optimizer="adamw")
    fit(anew, tmp_path, max_epochs=2, ckpt_path=path)
    assert f"{path} has no state of a harmonizer" in caplog.text
    assert not torch.equal(weights(whole), weights(anew))


def test_a_training_begins_anew_with_the_weights_of_a_checkpoint(tmp_path):
    model = Adapted(GH(), period=3)
    fit(model, tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    loaded = Adapted.load_from_checkpoint(tmp_path / "last.ckpt", weighting=GH(), period=3)
    assert torch.equal(weights(model), weights(loaded))
    fit(loaded, tmp_path)
    fit(model, tmp_path)  # So does a second fit of the same module.
    assert torch.equal(weights(model), weights(loaded))
    assert model.joint_loss.harmonizer.state_dict()["calls"] == 4


def test_a_loss_scaler_scales_the_gradient_and_leaves_the_weights(tmp_path):
    results = []
    for scale in (1.0, 1024.0):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        model = Adapted(GH(), dtype=torch.float32)
        trainer = fit(model, tmp_path, plugins=[plugin], gradient_clip_val=0.1)
        assert scaler.get_scale() == scale  # There was no overflow.
        results.append((weights(model), logged(trainer)[0]))
    (plain, first), (scaled, second) = results
    torch.testing.assert_close(plain, scaled, rtol=1e-3, atol=1e-5)
    assert second["gh/norm/task"] == pytest.approx(1024 * first["gh/norm/task"], rel=1e-2)
    assert second["gh/weight/task"] == pytest.approx(first["gh/weight/task"], rel=1e-2)


def test_bf16_reaches_the_losses(tmp_path):
    seen = []
    model = Adapted(GH(), dtype=torch.float32)
    model.head.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    fit(model, tmp_path, precision="bf16-mixed")
    assert set(seen) == {torch.bfloat16}
    assert torch.isfinite(weights(model)).all()


def test_the_package_of_the_former_name(tmp_path):
    former = pytest.importorskip("pytorch_lightning")
    methods = {name: Adapted.__dict__[name] for name in ("compute_losses", "create_harmonizer", "configure_optimizers")}
    kind = type("Former", (GradientHarmonizationMixin, former.LightningModule), methods)
    model, other = kind(), Adapted(GH())
    for name in ("backbone", "head", "weighting", "period", "interval", "optimizer"):
        setattr(model, name, getattr(Adapted(GH()), name))
    trainer = former.Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.fit(model, torch.utils.data.DataLoader(rows(), batch_size=4))
    fit(other, tmp_path)
    assert torch.equal(weights(model), weights(other))


def test_validation_and_checkpoints_need_no_training(tmp_path):
    class Validated(Adapted):
        def validation_step(self, batch, batch_idx):
            self.log("val", losses_of(self, batch)["task"])

    trainer = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    (result,) = trainer.validate(Validated(GH()), torch.utils.data.DataLoader(rows(4), batch_size=4), verbose=False)
    assert result["val"] == pytest.approx(losses_of(Adapted(), rows(4))["task"].item(), rel=1e-6)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    assert STATE_KEY not in torch.load(tmp_path / "first.ckpt", weights_only=True)


def test_mistakes_are_told(tmp_path):
    with pytest.raises(TypeError, match=r"mixin comes first, class Wrong\(GradientHarmonizationMixin, LightningModule"):
        type("Wrong", (pl.LightningModule, GradientHarmonizationMixin), {})
    with pytest.raises(TypeError, match=r"training_step of Own is not that of the .*compute_losses"):
        type("Own", (GradientHarmonizationMixin, pl.LightningModule), {"training_step": Plain.training_step})

    def training(kind=Adapted, **methods):
        return fit(type("Mine", (kind,), methods)(GH()), tmp_path)

    with pytest.raises(NotImplementedError, match=r"Mine has to define create_harmonizer\(self\)"):
        training(create_harmonizer=GradientHarmonizationMixin.create_harmonizer)
    with pytest.raises(NotImplementedError, match=r"Mine has to define compute_losses\(self, batch, batch_idx\)"):
        training(compute_losses=GradientHarmonizationMixin.compute_losses)
    with pytest.raises(TypeError, match="losses by task, got Tensor"):
        training(compute_losses=lambda self, batch, batch_idx: losses_of(self, batch)["task"])
    with pytest.raises(RuntimeError, match=r"on_fit_start of Mine has to call super\(\)\.on_fit_start\(\)"):
        training(on_fit_start=lambda self: None)
    with pytest.raises(ValueError, match=r"Mine: the mixin harmonizes Lightning's automatic optimization.*group"):
        training(automatic_optimization=False)


def test_a_strategy_that_wraps_the_module_is_refused(tmp_path):
    class Wrapping(SingleDeviceStrategy):
        """Puts the module into another, as DeepSpeed and FSDP do."""

        def setup(self, trainer):
            super().setup(trainer)
            self.model = nn.ModuleList([self.model])

    with pytest.raises(ValueError, match=r"cannot be measured under Wrapping.*fork"):
        fit(Adapted(GH()), tmp_path, strategy=Wrapping("cpu"))
