"""The hook in trainers that exist: order, checkpoints, LazyConfig, trainers and hooks of somebody else."""

import copy
import logging

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, LazyConfig, get_cfg, instantiate
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, hooks

from gh_downstream.comparison.diagnosis import diagnose
from gh_downstream.integrations.detectron2 import (
    GradientHarmonizationHook,
    install_gradient_harmonization,
    probe_gradients,
)
from tests.integrations.detectron2.test_run_model import Parts
from tests.integrations.detectron2.toy_detectors import ToyDetector, batches, toy_cfg, toy_trainer, weights


class SomebodysTrainer(DefaultTrainer):
    """Knows nothing of harmonization."""

    @classmethod
    def build_train_loader(cls, cfg):
        return batches(cls.start)

    start = 0

    def run_step(self):
        self.steps = getattr(self, "steps", 0) + 1
        super().run_step()


class Average(HookBase):
    """An EMA of the weights, as people write it."""

    def before_train(self):
        self.average = copy.deepcopy(self.trainer.model)

    def after_step(self):
        for mean, parameter in zip(self.average.parameters(), self.trainer.model.parameters(), strict=True):
            mean.data.lerp_(parameter.data, 0.1)


def names(trainer):
    return [type(hook).__name__ for hook in trainer._hooks]


@pytest.mark.parametrize("registered", [True, False], ids=["hook", "function"])
def test_a_default_trainer_of_somebody_else(tmp_path, registered):
    cfg = toy_cfg(tmp_path, "GH.WEIGHTING", "gh++")
    trainer = SomebodysTrainer(cfg)
    inner, optimizer = trainer._trainer, trainer.optimizer
    average = Average()
    trainer.register_hooks([average])
    if registered:
        trainer.register_hooks([GradientHarmonizationHook(cfg)])
    else:
        install_gradient_harmonization(trainer, cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert trainer._trainer is inner
    assert trainer.optimizer is optimizer
    assert trainer.steps == 6
    expected = toy_trainer(ToyDetector())
    expected.optimizer = SomebodysTrainer.build_optimizer(cfg, expected.model)
    expected.register_hooks(
        [hooks.LRScheduler(expected.optimizer, SomebodysTrainer.build_lr_scheduler(cfg, expected.optimizer))]
    )
    install_gradient_harmonization(expected, weighting="gh++")
    expected.train(0, 6)
    assert torch.equal(weights(trainer), weights(expected))
    assert not torch.equal(weights(trainer), torch.cat([p.detach().flatten() for p in average.average.parameters()]))
    # `after_backward` never fires for the hooks of a DefaultTrainer; the log does not depend on it.
    assert [k for _, k in trainer.storage.history("gh/angle").values()] == [1, 3, 5]
    assert "gh/angle" in (tmp_path / "metrics.json").read_text()


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("weighting", ["gh++", "sum"])
def test_what_is_harmonized_is_logged_once(tmp_path, caplog, weighting, warmup):
    caplog.set_level(logging.INFO)
    cfg = toy_cfg(tmp_path, "GH.WEIGHTING", weighting, "GH.WARMUP_STEPS", str(warmup))
    trainer = SomebodysTrainer(cfg)
    install_gradient_harmonization(trainer, cfg)
    trainer.train()
    count = sum(parameter.numel() for parameter in trainer.model.backbone.parameters())
    (told,) = [record.message for record in caplog.records if record.message.startswith("GH: ")]
    assert told == (
        f"GH: {weighting}; alignment: loss_da_img; task: loss_cls, loss_box_reg; shared: backbone, {count:,} parameters"
    )


def test_none_leaves_the_trainer_untouched_and_says_so(tmp_path, caplog):
    cfg = toy_cfg(tmp_path)
    trainer = SomebodysTrainer(cfg)
    before = list(trainer._hooks)
    caplog.set_level(logging.INFO)
    assert install_gradient_harmonization(trainer, cfg) is None
    told = [(x.levelname, x.message) for x in caplog.records if x.name.startswith("gh_downstream")]
    assert told == [("INFO", "GH.WEIGHTING is none: the gradients are neither harmonized nor measured")]
    assert trainer._hooks == before
    trainer.register_hooks([GradientHarmonizationHook(cfg)])
    trainer.train()
    assert not [key for key in trainer.storage.histories() if key.startswith("gh/")]
    assert "hooks" not in trainer.state_dict() or "GradientHarmonizationHook" not in trainer.state_dict()["hooks"]


def test_the_hook_goes_before_the_hooks_that_save_and_write_and_leaves_cleanly(tmp_path):
    cfg = toy_cfg(tmp_path, "GH.WEIGHTING", "gh")
    trainer = SomebodysTrainer(cfg)
    seen = []
    order = names(trainer)
    trainer.register_hooks(
        [
            GradientHarmonizationHook(cfg),
            hooks.CallbackHook(
                before_train=lambda t: seen.append("before"),
                after_step=lambda t: seen.append(names(t)),
                after_train=None,
            ),
        ]
    )
    trainer.train()
    place = order.index("PeriodicCheckpointer")
    expected = [*order[:place], "GradientHarmonizationHook", *order[place:], "CallbackHook"]
    assert seen == ["before", *[expected] * 6]
    assert "run_step" not in vars(trainer._trainer)


@pytest.mark.parametrize("method", ["gh", "gradvac"])
def test_resume_is_bit_for_bit_from_a_state_that_is_not_one_step_old(tmp_path, monkeypatch, method):
    if method == "gradvac":
        pytest.importorskip("torchjd")
    # 4 is no multiple of the period: the weights that are held are part of the state.
    overrides = ["GH.WEIGHTING", method, "GH.PERIOD", "3", "SOLVER.CHECKPOINT_PERIOD", "4", "SOLVER.MAX_ITER", "8"]
    overrides += ["GH.LOG_PERIOD", "8"]
    cfg = toy_cfg(tmp_path, *overrides)
    whole = SomebodysTrainer(cfg)
    install_gradient_harmonization(whole, cfg)
    whole.train()

    saved = torch.load(tmp_path / "model_0000003.pth", weights_only=True)
    assert saved["trainer"]["hooks"]["GradientHarmonizationHook"]["calls"] == 4
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    monkeypatch.setattr(SomebodysTrainer, "start", 4)
    for registered in (True, False):
        resumed = SomebodysTrainer(cfg)
        if registered:
            resumed.register_hooks([GradientHarmonizationHook(cfg)])
        else:
            install_gradient_harmonization(resumed, cfg)
        resumed.resume_or_load(resume=True)
        assert resumed.start_iter == 4
        resumed.train()
        assert torch.equal(weights(resumed), weights(whole))
        rates = [trainer.storage.history("gh/conflict_rate").values() for trainer in (whole, resumed)]
        assert rates[0] == rates[1]
        (tmp_path / "last_checkpoint").write_text("model_0000003.pth")


@pytest.mark.parametrize("registered", [True, False], ids=["hook", "function"])
def test_what_comes_after_the_checkpoint_is_refused(tmp_path, registered):
    """Its state would be lost without a word."""
    cfg = toy_cfg(tmp_path, "GH.WEIGHTING", "gh", "GH.PERIOD", "4")
    trainer = SomebodysTrainer(cfg)
    install_gradient_harmonization(trainer, cfg)
    trainer.train()
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    resumed = SomebodysTrainer(cfg)
    resumed.resume_or_load(resume=True)
    before = list(resumed._hooks)
    install = (
        (lambda: resumed.register_hooks([GradientHarmonizationHook(cfg)]))
        if registered
        else (lambda: install_gradient_harmonization(resumed, cfg))
    )
    with pytest.raises(ValueError, match=r"install it, or register its hook, before resume_or_load"):
        install()
    assert resumed._hooks == before
    assert "run_step" not in vars(resumed._trainer)
    begun = SomebodysTrainer(cfg)
    begun.resume_or_load(resume=False)  # weights alone, of which nothing is lost
    assert install_gradient_harmonization(begun, cfg) is not None


def test_a_simple_trainer_resumes_too(tmp_path):
    def build(start):
        trainer = toy_trainer(start=start)
        checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path), trainer=trainer)
        trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 3)])
        trainer.register_hooks([GradientHarmonizationHook(weighting="gh", period=2)])
        return trainer, checkpointer

    whole, _ = build(0)
    whole.train(0, 6)
    part, _ = build(0)
    part.train(0, 3)
    resumed, checkpointer = build(3)
    checkpointer.resume_or_load("", resume=True)
    resumed.train(resumed.iter + 1, 6)
    assert torch.equal(weights(resumed), weights(whole))


def test_training_twice_goes_on(tmp_path):
    once, twice = toy_trainer(), toy_trainer()
    for trainer in (once, twice):
        trainer.register_hooks([GradientHarmonizationHook(weighting="gh", period=4)])
    once.train(0, 6)
    twice.train(0, 3)
    twice.train(3, 6)
    assert torch.equal(weights(once), weights(twice))


def test_a_trainer_that_takes_its_own_steps_is_told(tmp_path):
    class Own(SomebodysTrainer):
        def run_step(self):
            self.optimizer.zero_grad()
            sum(self.model(next(self._trainer._data_loader_iter)).values()).backward()
            self.optimizer.step()

    cfg = toy_cfg(tmp_path, "GH.WEIGHTING", "gh")
    trainer = Own(cfg)
    install_gradient_harmonization(trainer, cfg)
    with pytest.raises(RuntimeError, match=r"Own.run_step does not run .* super\(\).run_step\(\)"):
        trainer.train()


def test_evaluation_and_checkpoints_run_between_the_steps(tmp_path):
    cfg = toy_cfg(tmp_path, "GH.WEIGHTING", "gh", "GH.SCOPE", "all")
    trainer = SomebodysTrainer(cfg)
    results = iter(range(10))

    def evaluate():
        trainer.model.eval()
        with torch.no_grad():
            trainer.model(next(batches()))
        trainer.model.train()
        return {"AP50": float(next(results))}

    best = hooks.BestCheckpointer(2, trainer.checkpointer, "AP50", file_prefix="best")
    trainer.register_hooks([hooks.EvalHook(2, evaluate), best, GradientHarmonizationHook(cfg)])
    trainer.train()
    assert (tmp_path / "best.pth").is_file()
    assert (tmp_path / "model_final.pth").is_file()


def test_amp_by_config_key_and_a_loss_scaler_that_resumes(tmp_path):
    cfg = toy_cfg(tmp_path, "GH.WEIGHTING", "gh", "SOLVER.AMP.ENABLED", "True")

    def build():
        trainer = SomebodysTrainer(cfg)
        trainer._trainer.precision = torch.bfloat16
        trainer._trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
        install_gradient_harmonization(trainer, cfg)
        return trainer

    trainer = build()
    trainer.train()
    assert trainer._trainer.grad_scaler.get_scale() == 512
    resumed = build()
    resumed.resume_or_load(resume=True)
    assert resumed._trainer.grad_scaler.get_scale() == 512
    assert torch.equal(weights(resumed), weights(trainer))


def test_lazy_config(tmp_path):
    config = tmp_path / "lazy.py"
    config.write_text(
        "from detectron2.config import LazyCall as L\n"
        "from gh_downstream.integrations.detectron2 import GradientHarmonizationHook\n"
        "gh = L(GradientHarmonizationHook)(weighting='gh++', shared=['backbone'], log_period=1,\n"
        "                                  tasks=dict(alignment=['*_da_*'], task=[]))\n"
    )
    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(config)), ["gh.weighting=gh++:adaptive", "gh.period=2"])
    trainer = toy_trainer()
    trainer.register_hooks([instantiate(cfg.gh)])
    trainer.train(0, 3)
    expected = toy_trainer()
    install_gradient_harmonization(expected, weighting="gh++:adaptive", period=2)
    expected.train(0, 3)
    assert torch.equal(weights(trainer), weights(expected))
    LazyConfig.save(cfg, str(tmp_path / "saved.yaml"))
    assert instantiate(LazyCall(GradientHarmonizationHook)(weighting="none")).settings.weighting == "none"


def test_a_hook_takes_a_config_or_arguments(tmp_path):
    for arguments, settings in (((), {}), ((toy_cfg(tmp_path),), {"weighting": "gh"})):
        with pytest.raises(TypeError, match="not both"):
            GradientHarmonizationHook(*arguments, **settings)
    with pytest.raises(TypeError, match="method"):
        GradientHarmonizationHook(method="gh")
    with pytest.raises(ValueError, match="log_period"):
        GradientHarmonizationHook(weighting="gh", log_period=0)
    with pytest.raises(ValueError, match=r"no node GH: call add_gh_config\(cfg\)"):
        GradientHarmonizationHook(get_cfg())


@pytest.mark.parametrize("kind", [SimpleTrainer, Parts], ids=lambda kind: kind.__name__)
def test_gradients_of_a_trainer_are_probed_and_nothing_is_trained(kind):
    trainer = toy_trainer(kind=kind)
    before = weights(trainer)
    probe = probe_gradients(trainer, batches=3, tasks={"alignment": ["loss_da_*"], "task": []})
    assert len(probe.gramians) == 3
    assert torch.equal(weights(trainer), before)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert {"run_step", "run_model", "do_backward"}.isdisjoint(trainer.__dict__)
    assert probe.layers == ["backbone.0", "backbone.2"]
    install_gradient_harmonization(trainer := toy_trainer(kind=kind), weighting="sum", log_period=1)
    trainer.train(0, 1)
    norms = [trainer.storage.latest()[f"gh/norm/{task}"][0] for task in ("alignment", "task")]
    assert probe.gramians[0].sum(0).diagonal().sqrt().tolist() == pytest.approx(norms, rel=1e-5)


def test_gradients_of_a_trainer_of_a_config_are_probed_with_its_settings(tmp_path):
    trainer = SomebodysTrainer(cfg := toy_cfg(tmp_path, "GH.WEIGHTING", "sum", "GH.MAX_WEIGHT", "3.0"))
    trainer.resume_or_load(resume=False)
    probe = probe_gradients(trainer, cfg, batches=4)
    assert probe.weighting.max_weight == 3
    assert len(diagnose(probe).verdict()) == 2
