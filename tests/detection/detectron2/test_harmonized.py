"""Harmonization of the domain-adaptive detectors through the hook, at the parameters and at the features."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import AMPTrainer, SimpleTrainer, hooks
from torch import nn

from gh_downstream.harmonization import GH, Harmonizer, Sum
from gh_downstream.integrations.detectron2 import GradientHarmonizationHook, install_gradient_harmonization
from tests.detection.detectron2.adaptive_models import IMAGE_ONLY, losses_of, model_of, source, split, target
from tests.integrations.detectron2.toy_detectors import ToyDetector, toy_trainer, weights

BURN_IN = ("DA.BURN_IN_ITERS", 2)
CONFLICTING = -50.0  # Strength of the reversal with which the gradients conflict here; that of the other sign agrees.
FEATURES = {"weighting": "gh", "measure": "features", "log_period": 1}


def trainer_of(model, kind=SimpleTrainer, **options):
    def batches():
        while True:
            yield source() + target()

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
    return kind(model, batches(), optimizer, **options)


def train(trainer, steps, start=0):
    torch.manual_seed(1)  # Detectron2 samples anchors and regions at random.
    trainer.train(start, steps)
    return trainer


def logged(trainer, key="gh/cosine"):
    return [iteration for _, iteration in trainer.storage.histories()[key].values()]


# At the parameters


@pytest.mark.parametrize(
    ("kind", "changes"), [("fpn", {}), ("fpn", IMAGE_ONLY), ("c4", {}), ("cascade", {}), ("retinanet", {})], ids=str
)
def test_what_is_shared_is_what_the_model_says(kind, changes):
    trainer = trainer_of(model_of(kind, **changes))
    install_gradient_harmonization(trainer, weighting="gh", log_period=1)
    train(trainer, 1)
    model = model_of(kind, **changes)
    task, alignment = (sum(group.values()) for group in split(losses_of(model, source() + target())))
    Harmonizer(GH(), model.shared, model=model).backward({"task": task, "alignment": alignment})
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(
                trainer.model.get_parameter(name).grad,
                parameter.grad,
                rtol=1e-3,
                atol=1e-6,
                msg=lambda m, n=name: n + m,
            )
    assert logged(trainer) == [0]


def test_what_is_shared_can_be_said_otherwise():
    trainer, usual = trainer_of(model_of()), trainer_of(model_of())
    install_gradient_harmonization(trainer, weighting="gh", shared=["backbone"])
    install_gradient_harmonization(usual, weighting="gh")
    step, usual_step = trainer.run_step, usual.run_step
    train(trainer, 1), train(usual, 1)
    assert len(usual_step._harmonizer.shared) - len(step._harmonizer.shared) == 4  # two layers of the box head


def test_another_model_may_have_something_else_by_that_name():
    class Another(ToyDetector):
        def __init__(self):
            super().__init__()
            self.shared = nn.Identity()

    found, expected = toy_trainer(Another()), toy_trainer()
    for trainer, names in ((found, []), (expected, ["backbone"])):
        install_gradient_harmonization(trainer, weighting="gh", shared=names)
        trainer.train(0, 2)
    assert torch.equal(weights(found), weights(expected))


@pytest.mark.parametrize("scope", ["shared", "all"])
@pytest.mark.parametrize("weighting", ["gh", "sum"])
@pytest.mark.parametrize(("warmup", "first"), [(0, 2), (3, 3)])
def test_harmonization_does_not_begin_before_the_burn_in_is_over(weighting, scope, warmup, first):
    trainer, plain = (trainer_of(model_of("fpn", *BURN_IN, **IMAGE_ONLY)) for _ in range(2))
    for each in (trainer, plain):
        each.model.alignment.reversal_strength = CONFLICTING
    install_gradient_harmonization(trainer, weighting=weighting, warmup_steps=warmup, log_period=1, scope=scope)
    train(trainer, 4), train(plain, 4)
    assert logged(trainer) == list(range(first, 4))
    assert trainer.storage.history("gh/conflict").values()[0][0] == 1
    for key in ("loss_rpn_cls", "loss_image_domain"):
        found, expected = ([v for v, _ in each.storage.history(key).values()] for each in (trainer, plain))
        # The losses of a step are those of the weights before it.
        assert found[: first + 1] == expected[: first + 1]
        assert [value == 0 for value in found] == [key == "loss_image_domain"] * 2 + [False] * 2
    assert torch.equal(weights(trainer), weights(plain)) == (weighting == "sum")
    assert torch.allclose(weights(trainer), weights(plain), rtol=1e-3, atol=1e-6) == (weighting == "sum")


# At the features


def test_the_hook_logs_what_the_model_measures_and_changes_nothing():
    trainer, bare = (trainer_of(model_of("fpn", *BURN_IN, harmonize_features=GH())) for _ in range(2))
    install_gradient_harmonization(trainer, **FEATURES | {"log_period": 2})
    reports = []
    bare.register_hooks([hooks.CallbackHook(after_step=lambda _: reports.append(bare.model.measurements.report))])
    train(trainer, 6), train(bare, 6)
    assert torch.equal(weights(trainer), weights(bare))
    assert trainer.model.measurements.state_dict()["measured"] == 0
    assert reports[:2] == [None, None]
    reports = reports[2:]
    assert logged(trainer) == [3, 5]
    for name in ("cosine", "angle", "gain", "conflict", "opposed", "norm/task", "norm/alignment", "weight/alignment"):
        found = [value for value, _ in trainer.storage.history(f"gh/{name}").values()]
        assert found == [reports[k].as_dict()[name] for k in (1, 3)]
    rates = [value for value, _ in trainer.storage.history("gh/conflict_rate").values()]
    assert rates == [sum(bool(report.conflict) for report in reports[k : k + 2]) / 2 for k in (0, 2)]
    assert not [key for key in trainer.storage.histories() if key.startswith("gh/loss")]


def test_the_fork_takes_effect_under_the_hook():
    forked, plain = trainer_of(model_of(harmonize_features=lambda g: g.new_tensor([0.0, 1.0]))), trainer_of(model_of())
    install_gradient_harmonization(forked, **FEATURES)
    train(forked, 1), train(plain, 1)
    gradient, other = (trainer.model.backbone.bottom_up.stem.conv1.weight.grad for trainer in (forked, plain))
    assert not torch.allclose(gradient, other)
    gradient, other = (trainer.model.alignment.image_head[0].weight.grad for trainer in (forked, plain))
    torch.testing.assert_close(gradient, other)


def test_what_is_counted_between_two_entries_survives_a_restart(tmp_path):
    def build():
        trainer = trainer_of(model_of("fpn", harmonize_features=GH(), **IMAGE_ONLY))
        seed = hooks.CallbackHook(before_step=lambda trainer: torch.manual_seed(trainer.iter))
        trainer.register_hooks([seed, GradientHarmonizationHook(**FEATURES | {"log_period": 4})])
        return trainer, DetectionCheckpointer(trainer.model, str(tmp_path), trainer=trainer)

    (whole, _), (part, checkpointer), (resumed, other) = build(), build(), build()
    part.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 3)])
    whole.train(0, 4)
    part.train(0, 3)
    other.resume_or_load("", resume=True)
    resumed.train(resumed.iter + 1, 4)
    assert torch.equal(weights(resumed), weights(whole))
    rates = [trainer.storage.history("gh/conflict_rate").values() for trainer in (whole, resumed)]
    assert rates[0] == rates[1]


class CPUTrainer(AMPTrainer):
    """Detectron2's own needs CUDA."""

    def run_step(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = self.model(next(self._data_loader_iter))
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


@pytest.mark.parametrize("scale", [256.0, 2.0**127], ids=["scaled", "overflow"])
def test_amp(scale):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer = trainer_of(model_of(harmonize_features=GH()), CPUTrainer, grad_scaler=scaler)
    before = weights(trainer)
    install_gradient_harmonization(trainer, **FEATURES)
    train(trainer, 1)
    overflow = scale > 256
    assert scaler.get_scale() == (scale / 2 if overflow else scale)
    assert torch.equal(weights(trainer), before) == overflow
    assert (trainer.storage.history("gh/weight/task").latest() == 1) or not overflow
    assert weights(trainer).isfinite().all()


def test_what_does_not_fit_the_model_is_refused():
    for model in (model_of(), ToyDetector()):
        trainer = trainer_of(model)
        with pytest.raises(ValueError, match=rf"GH.MEASURE features needs .* {type(model).__name__} does not"):
            install_gradient_harmonization(trainer, **FEATURES)
        assert trainer._hooks == []
    for weighting in ("gh", "sum"):
        with pytest.raises(ValueError, match=r"set GH.MEASURE features, or build it without harmonize_features"):
            install_gradient_harmonization(trainer_of(model_of(harmonize_features=Sum())), weighting=weighting)
    assert install_gradient_harmonization(trainer_of(model_of()), **FEATURES | {"weighting": "none"}) is None


def test_a_backward_pass_that_misses_the_fork_is_told():
    class TaskAlone(SimpleTrainer):
        def run_step(self):
            losses = self.model(next(self._data_loader_iter))
            self.optimizer.zero_grad()
            losses["loss_cls"].detach().requires_grad_().backward()

    trainer = trainer_of(model_of(harmonize_features=GH()), TaskAlone)
    install_gradient_harmonization(trainer, **FEATURES)
    with pytest.raises(RuntimeError, match="no gradient came back through the fork"):
        train(trainer, 1)
