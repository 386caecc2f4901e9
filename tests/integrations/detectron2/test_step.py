"""The step against the core applied by hand, and against Detectron2's own."""

import copy

import pytest
import torch
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer
from detectron2.solver.build import maybe_add_gradient_clipping
from torch.utils.checkpoint import checkpoint

from gh_downstream.harmonization import Harmonizer, Sum
from gh_downstream.integrations.detectron2 import install_gradient_harmonization
from tests.integrations.detectron2.toy_detectors import ToyDetector, batches, gradients, toy_cfg, toy_trainer, weights

SHARED = {"scope": "shared"}
ALL = {"scope": "all"}
IDS = ["shared", "all"]


def tasks_of(losses):
    return {"task": losses["loss_cls"] + losses["loss_box_reg"], "alignment": losses["loss_da_img"]}


def by_hand(model, weighting, steps, scope="shared", period=1):
    """A loop of one's own around the core."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    harmonizer = Harmonizer(weighting, model.backbone, scope=scope, period=period)
    reports = []
    for _, data in zip(range(steps), batches(), strict=False):
        optimizer.zero_grad()
        reports.append(harmonizer.backward(tasks_of(model(data))))
        optimizer.step()
    return reports


def assert_close(trainer, model, **tolerance):
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            gradients(trainer)[name], parameter.grad, msg=lambda m, n=name: f"{n}: {m}", **tolerance
        )


@pytest.mark.parametrize("method", ["gh", "gh++", "gh++:adaptive", "gh++:official"])
@pytest.mark.parametrize("scope", ["shared", "all"])
@pytest.mark.parametrize("period", [1, 3])
def test_it_is_the_core_applied_by_hand(method, scope, period):
    trainer = toy_trainer()
    install_gradient_harmonization(trainer, weighting=method, scope=scope, period=period)
    trainer.train(0, 5)
    expected = ToyDetector()
    reports = by_hand(expected, method, 5, scope, period)
    assert any(report.conflict for report in reports)
    assert_close(trainer, expected, rtol=0, atol=0)
    assert torch.equal(weights(trainer), torch.cat([p.detach().flatten() for p in expected.parameters()]))


def test_three_tasks_in_the_order_of_the_config():
    tasks = {"alignment": ["*_da_*"], "boxes": ["*_box_*"], "task": []}
    trainer = toy_trainer()
    install_gradient_harmonization(trainer, weighting="gh", tasks=tasks)
    trainer.train(0, 1)
    model = ToyDetector()
    losses = model(next(batches()))
    Harmonizer("gh", model.backbone, tasks=list(tasks)).backward(
        {"alignment": losses["loss_da_img"], "boxes": losses["loss_box_reg"], "task": losses["loss_cls"]}
    )
    assert_close(trainer, model, rtol=0, atol=0)


@pytest.mark.parametrize("step", [SHARED, ALL], ids=IDS)
def test_sum_is_plain_detectron2_bit_for_bit(step):
    plain, measured = toy_trainer(), toy_trainer()
    install_gradient_harmonization(measured, weighting="sum", log_period=2, **step)
    plain.train(0, 20)
    measured.train(0, 20)
    assert torch.equal(weights(plain), weights(measured))
    assert len(measured.storage.history("gh/cosine").values()) == 10
    weight = measured.storage.history("gh/weight/alignment").values()
    assert {value for value, _ in weight} == {1.0}


@pytest.mark.parametrize("period", [1, 2])
def test_the_conflicts_of_the_plain_sum_are_counted_at_every_step_of_the_period(period):
    trainer = toy_trainer()
    install_gradient_harmonization(trainer, weighting="sum", log_period=6, period=period)
    trainer.train(0, 12)
    reports = by_hand(ToyDetector(), Sum(), 12)
    measured = [bool(report.conflict) for report in reports[::period]]
    parts = measured[: 6 // period], measured[6 // period :]
    rates = [value for value, _ in trainer.storage.history("gh/conflict_rate").values()]
    assert rates == [sum(part) / len(part) for part in parts]
    assert not set(rates) <= {0, 1}


@pytest.mark.parametrize("word", ["sum", "sum:length=sum", "sum:max_weight=2"])
def test_every_word_of_the_sum_is_plain(word):
    plain, measured = toy_trainer(), toy_trainer()
    hook = install_gradient_harmonization(measured, weighting=word)
    assert hook._step.plain
    plain.train(0, 2)
    measured.train(0, 2)
    assert torch.equal(weights(plain), weights(measured))


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_model_without_losses_is_told(warmup):
    trainer = toy_trainer()
    install_gradient_harmonization(trainer, weighting="gh", warmup_steps=warmup)
    for output, error, message in (([], TypeError, "losses by task, got list"), ({}, ValueError, "there is no loss")):
        trainer.model.forward = lambda batch, output=output: output
        with pytest.raises(error, match=message):
            trainer.train(0, 1)


def test_warm_up_is_plain_detectron2_bit_for_bit():
    plain, warming = toy_trainer(), toy_trainer()
    install_gradient_harmonization(warming, weighting="gh", warmup_steps=4, log_period=1)
    plain.train(0, 4)
    warming.train(0, 4)
    assert torch.equal(weights(plain), weights(warming))
    assert "gh/cosine" not in warming.storage.histories()
    for trainer in (plain, warming):
        trainer.data_loader = batches(4)
        trainer._data_loader_iter_obj = None
    plain.train(4, 8)
    warming.train(4, 8)
    assert not torch.equal(weights(plain), weights(warming))
    assert "gh/cosine" in warming.storage.histories()


def test_a_typo_is_told_in_the_warm_up_and_an_error_after_it(caplog):
    trainer = toy_trainer()
    tasks = {"alignment": ["*_domain_*"], "task": []}
    install_gradient_harmonization(trainer, weighting="gh", warmup_steps=2, tasks=tasks)
    with pytest.raises(
        ValueError,
        match=r"^GH\.TASKS\.ALIGNMENT: .*_domain_.* fits no loss; the losses are loss_cls, loss_box_reg, loss_da",
    ):
        trainer.train(0, 3)
    told = [record for record in caplog.records if "will fail when it begins" in record.message]
    assert len(told) == 1
    assert trainer.iter == 2


@pytest.mark.parametrize("method", ["sum", "gh"])
def test_without_a_warm_up_it_is_an_error_at_the_first_step(method):
    trainer = toy_trainer()
    install_gradient_harmonization(trainer, weighting=method, tasks={"alignment": ["*_domain_*"], "task": []})
    with pytest.raises(ValueError, match="the losses are loss_cls, loss_box_reg, loss_da_img"):
        trainer.train(0, 1)


@pytest.mark.parametrize("step", [SHARED, ALL], ids=IDS)
def test_the_losses_that_are_logged_are_those_of_the_model(step):
    trainer = toy_trainer()
    install_gradient_harmonization(trainer, weighting="gh", log_period=1, **step)
    trainer.train(0, 1)
    losses = {key: value.item() for key, value in ToyDetector()(next(batches())).items()}
    stored = {key: history.latest() for key, history in trainer.storage.histories().items()}
    assert {key: stored[key] for key in losses} == pytest.approx(losses)
    assert stored["total_loss"] == pytest.approx(sum(losses.values()))
    assert stored["gh/loss/alignment"] == pytest.approx(losses["loss_da_img"])
    assert stored["gh/loss/task"] == pytest.approx(losses["loss_cls"] + losses["loss_box_reg"])


@pytest.mark.parametrize("step", [SHARED, ALL], ids=IDS)
def test_what_is_logged_is_the_report_of_the_core(step):
    trainer = toy_trainer()
    install_gradient_harmonization(trainer, weighting="gh", log_period=3, **step)
    trainer.train(0, 6)
    reports = by_hand(ToyDetector(), "gh", 6, step.get("scope", "shared"))
    for key in ("cosine", "angle", "gain", "conflict", "opposed", "norm/task", "weight/alignment"):
        logged = trainer.storage.history(f"gh/{key}").values()
        expected = [(reports[k].as_dict()[key], k) for k in (2, 5)]
        assert [k for _, k in logged] == [2, 5]
        assert [v for v, _ in logged] == pytest.approx([v for v, _ in expected], rel=1e-3)
    rates = [value for value, _ in trainer.storage.history("gh/conflict_rate").values()]
    assert rates == pytest.approx([sum(bool(r.conflict) for r in part) / 3 for part in (reports[:3], reports[3:])])


@pytest.mark.parametrize("step", [SHARED, ALL], ids=IDS)
def test_clipping_sees_the_harmonized_gradient_once(tmp_path, step):
    cfg = toy_cfg(tmp_path)
    cfg.SOLVER.CLIP_GRADIENTS.merge_from_list(["ENABLED", True, "CLIP_TYPE", "norm", "CLIP_VALUE", 0.01])
    trainer = toy_trainer()
    trainer.optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(trainer.model.parameters(), lr=0.05)
    before = copy.deepcopy(trainer.model)
    install_gradient_harmonization(trainer, weighting="gh", **step)
    trainer.train(0, 1)
    model = ToyDetector()
    by_hand(model, "gh", 1, step.get("scope", "shared"))
    # Detectron2 clips each parameter by itself.
    for name, parameter in model.named_parameters():
        clipped = parameter.grad * (0.01 / (parameter.grad.norm() + 1e-6)).clamp(max=1)
        expected = before.get_parameter(name).detach() - 0.05 * clipped
        torch.testing.assert_close(trainer.model.get_parameter(name).detach(), expected, rtol=1e-5, atol=1e-7)


def scaler(**options):
    return torch.amp.GradScaler("cpu", **options)


@pytest.mark.parametrize("step", [SHARED, ALL], ids=IDS)
def test_amp_with_a_loss_scaler_on_bf16(step):
    trainer = toy_trainer(kind=AMPTrainer, precision=torch.bfloat16, grad_scaler=scaler(init_scale=1024.0))
    trainer.log_grad_scaler = True
    install_gradient_harmonization(trainer, weighting="gh", **step)
    trainer.train(0, 1)
    assert trainer.storage.history("[metric]grad_scaler").latest() == 1024
    model = ToyDetector()
    harmonizer = Harmonizer("gh", model.backbone, scope=step.get("scope", "shared"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = tasks_of(model(next(batches())))
    report = harmonizer.backward(losses)
    assert report.conflict
    # The scaler has unscaled the trainer's gradients; bf16 keeps 8 bits of what passes through the layers.
    found, expected = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (trainer.model, model))
    assert (found - expected).norm() < 2**-7 * expected.norm()


@pytest.mark.parametrize("step", [SHARED, ALL], ids=IDS)
def test_amp_skips_the_update_of_an_overflow(step):
    trainer = toy_trainer(kind=AMPTrainer, precision=torch.bfloat16, grad_scaler=scaler(init_scale=2.0**127))
    before = weights(trainer)
    install_gradient_harmonization(trainer, weighting="gh", log_period=1, **step)
    trainer.train(0, 1)
    assert torch.equal(weights(trainer), before)
    assert trainer.grad_scaler.get_scale() == 2.0**126
    assert trainer.storage.history("gh/weight/task").latest() == 1


@pytest.mark.parametrize("options", [{"zero_grad_before_forward": True}, {"async_write_metrics": True}], ids=str)
def test_the_options_of_the_trainer_hold(options):
    usual, other = toy_trainer(), toy_trainer(**options)
    for trainer in (usual, other):
        install_gradient_harmonization(trainer, weighting="gh")
        trainer.train(0, 4)
    assert torch.equal(weights(usual), weights(other))
    assert len(other.storage.history("loss_cls").values()) == 4


def test_hooks_of_the_inner_trainer_run_after_the_backward_pass():
    class Seen(HookBase):
        norms = ()

        def after_backward(self):
            self.norms = (*self.norms, self.trainer.model.head.weight.grad.norm())

    trainer, seen = toy_trainer(), Seen()
    trainer.register_hooks([seen])
    install_gradient_harmonization(trainer, weighting="gh")
    trainer.train(0, 2)
    assert len(seen.norms) == 2
    assert seen.norms[1] == trainer.model.head.weight.grad.norm()


def test_gather_metric_period():
    trainer = toy_trainer(gather_metric_period=2)
    install_gradient_harmonization(trainer, weighting="gh")
    trainer.train(0, 4)
    assert [k for _, k in trainer.storage.history("total_loss").values()] == [1, 3]


class Accumulating(torch.optim.SGD):
    """Gradient accumulation as Detectron2 advises it: an optimizer that updates at every second step."""

    calls = 0

    def zero_grad(self, set_to_none=True):
        if self.calls % 2 == 0:
            super().zero_grad(set_to_none)

    def step(self, closure=None):
        self.calls += 1
        if self.calls % 2 == 0:
            super().step(closure)


@pytest.mark.parametrize("step", [SHARED, ALL], ids=IDS)
def test_gradient_accumulation_weighs_every_micro_batch(step):
    trainer = toy_trainer()
    trainer.optimizer = Accumulating(trainer.model.parameters(), lr=0.05)
    install_gradient_harmonization(trainer, weighting="gh", **step)
    trainer.train(0, 2)
    model = ToyDetector()
    harmonizer = Harmonizer("gh", model.backbone, scope=step.get("scope", "shared"))
    for _, data in zip(range(2), batches(), strict=False):
        harmonizer.backward(tasks_of(model(data)))
    assert_close(trainer, model, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("step", [SHARED, ALL], ids=IDS)
def test_a_private_parameter_keeps_its_gradient_with_scope_shared_alone(step):
    trainer = toy_trainer()
    install_gradient_harmonization(trainer, weighting="gh", **step)
    trainer.train(0, 1)
    model = ToyDetector()
    sum(model(next(batches())).values()).backward()
    plain = {name: p.grad for name, p in model.named_parameters()}
    found = gradients(trainer)
    same = torch.allclose(found["discriminator.weight"], plain["discriminator.weight"])
    assert same is (step is SHARED)
    assert not torch.allclose(found["backbone.0.weight"], plain["backbone.0.weight"])


class Checkpointed(ToyDetector):
    def __init__(self, reentrant):
        super().__init__()
        self.backbone[0] = Recomputed(self.backbone[0], reentrant)


class Recomputed(torch.nn.Module):
    def __init__(self, module, reentrant):
        super().__init__()
        self.module, self.reentrant = module, reentrant

    def forward(self, x):
        return checkpoint(self.module, x.requires_grad_(), use_reentrant=self.reentrant)


@pytest.mark.parametrize("step", [SHARED, ALL], ids=IDS)
def test_reentrant_checkpointing_is_refused_and_the_other_kind_works(step):
    trainer = toy_trainer(Checkpointed(reentrant=True))
    install_gradient_harmonization(trainer, weighting="gh", **step)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        trainer.train(0, 1)
    recomputed, usual = toy_trainer(Checkpointed(reentrant=False)), toy_trainer()
    for trainer in (recomputed, usual):
        install_gradient_harmonization(trainer, weighting="gh", **step)
        trainer.train(0, 3)
    torch.testing.assert_close(weights(recomputed), weights(usual))


class OwnStep(SimpleTrainer):
    def run_step(self):
        pass


def test_what_cannot_be_harmonized_is_refused_and_left_alone():
    trainer = toy_trainer(kind=OwnStep)
    with pytest.raises(TypeError, match=r"OwnStep has a run_step of its own.*Harmonizer"):
        install_gradient_harmonization(trainer, weighting="gh")
    trainer = toy_trainer()
    with pytest.raises(ValueError, match=r"'neck' matches no parameter.* backbone, head, discriminator"):
        install_gradient_harmonization(trainer, weighting="gh", shared=["neck"])
    assert trainer._hooks == []
    assert "run_step" not in vars(trainer)
    install_gradient_harmonization(trainer, weighting="gh")
    with pytest.raises(ValueError, match="harmonized already"):
        install_gradient_harmonization(trainer, weighting="gh")
    assert len(trainer._hooks) == 1


def test_max_weight_and_a_weighting_of_torchjd():
    capped = toy_trainer()
    install_gradient_harmonization(capped, weighting="gh", max_weight=1.0, log_period=1)
    capped.train(0, 3)
    assert max(value for value, _ in capped.storage.history("gh/weight/task").values()) <= 1
    pytest.importorskip("torchjd")
    trainer = toy_trainer()
    install_gradient_harmonization(trainer, weighting="pcgrad")
    trainer.train(0, 1)
    model = ToyDetector()
    by_hand(model, "gh", 1)  # For two tasks PCGrad is GH.
    assert_close(trainer, model, rtol=1e-4, atol=1e-6)


def test_the_step_does_not_own_the_trainer():
    import gc
    import weakref

    trainer = toy_trainer()
    install_gradient_harmonization(trainer, weighting="gh")
    trainer.train(0, 1)
    gone = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert gone() is None
    finally:
        gc.enable()
