"""Trainers like ALDI's, whose own ``run_step`` calls ``run_model`` and ``do_backward``; and ALDI's, if there."""

import pytest
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer

from gh_downstream.harmonization import Harmonizer
from gh_downstream.integrations.detectron2 import install_gradient_harmonization
from tests.integrations.detectron2.toy_detectors import ToyDetector, batches, gradients, toy_trainer, weights


class Parts(SimpleTrainer):
    """The interface of ALDI's trainers: a batch in parts, each with a forward pass, and losses named after them."""

    def __init__(self, model, data_loader, optimizer, backward_at_end=True):
        super().__init__(model, data_loader, optimizer)
        self.backward_at_end = backward_at_end
        self.finished = 0

    def run_step(self):
        losses = self.run_model(next(self._data_loader_iter))
        self.optimizer.zero_grad()
        self.do_backward(sum(losses.values()))
        self.after_backward()
        self._write_metrics(losses, 0.0)
        self.optimizer.step()
        self.finished += 1

    def run_model(self, data):
        losses = {}
        for name, part in zip(("source", "target"), data.chunk(2), strict=True):
            for key, loss in self.model(part).items():
                if name == "source" or "_da_" in key:
                    losses[f"{key}_{name}"] = loss / 2
        return losses

    def do_backward(self, losses, override=False):
        if self.backward_at_end or override:
            losses.backward()


class AMPParts(Parts, AMPTrainer):
    def __init__(self, model, data_loader, optimizer):
        AMPTrainer.__init__(
            self, model, data_loader, optimizer, grad_scaler=torch.amp.GradScaler("cpu", init_scale=64.0)
        )
        self.finished = 0

    def run_step(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = self.run_model(next(self._data_loader_iter))
        self.optimizer.zero_grad()
        self.do_backward(sum(losses.values()))
        self._write_metrics(losses, 0.0)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def do_backward(self, losses):
        self.grad_scaler.scale(losses).backward()


def by_hand(weighting, steps, autocast=False):
    """The losses of both parts, divided between the tasks, in a loop of one's own; and its reports."""
    model = ToyDetector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    harmonizer, reports = Harmonizer(weighting, model.backbone), []
    for _, data in zip(range(steps), batches(), strict=False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            source, target = (model(part) for part in data.chunk(2))
        optimizer.zero_grad()
        tasks = {
            "alignment": source["loss_da_img"] / 2 + target["loss_da_img"] / 2,
            "task": source["loss_cls"] / 2 + source["loss_box_reg"] / 2,
        }
        reports.append(harmonizer.backward(tasks))
        optimizer.step()
    return model, reports


def assert_close(trainer, model, **tolerance):
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients(trainer)[name], parameter.grad, **tolerance)


@pytest.mark.parametrize("weighting", ["gh", "gh++:adaptive"])
def test_its_own_step_runs_with_harmonized_gradients(weighting):
    trainer = toy_trainer(kind=Parts)
    install_gradient_harmonization(trainer, weighting=weighting, log_period=2)
    trainer.train(0, 4)
    expected, reports = by_hand(weighting, 4)
    assert any(report.conflict for report in reports)
    assert_close(trainer, expected, rtol=1e-5, atol=1e-7)
    assert trainer.finished == 4
    assert [k for _, k in trainer.storage.history("gh/conflict_rate").values()] == [1, 3]
    assert "loss_da_img_target" in trainer.storage.histories()
    assert not {"run_model", "do_backward"} & vars(trainer).keys()


def test_the_plain_sum_and_the_warm_up_are_its_own_training_bit_for_bit():
    plain, measured, warming = (toy_trainer(kind=Parts) for _ in range(3))
    install_gradient_harmonization(measured, weighting="sum", log_period=1)
    install_gradient_harmonization(warming, weighting="gh", warmup_steps=4)
    for trainer in (plain, measured, warming):
        trainer.train(0, 4)
        assert torch.equal(weights(trainer), weights(plain))
    assert len(measured.storage.history("gh/cosine").values()) == 4


def test_a_loss_scaler():
    trainer = toy_trainer(kind=AMPParts)
    install_gradient_harmonization(trainer, weighting="gh")
    trainer.train(0, 1)
    model, (report,) = by_hand("gh", 1, autocast=True)
    assert report.conflict
    found, expected = (torch.cat([p.grad.flatten() for p in each.parameters()]) for each in (trainer.model, model))
    assert (found - expected).norm() < 2**-7 * expected.norm()


def test_backward_on_each_part_is_refused_by_its_key():
    trainer = toy_trainer(kind=Parts, backward_at_end=False)
    with pytest.raises(ValueError, match=r"SOLVER\.BACKWARD_AT_END False .* set SOLVER\.BACKWARD_AT_END True"):
        install_gradient_harmonization(trainer, weighting="gh")
    assert trainer._hooks == []
    trainer.train(0, 1)


def test_it_is_harmonized_once():
    trainer = toy_trainer(kind=Parts)
    install_gradient_harmonization(trainer, weighting="gh")
    with pytest.raises(ValueError, match="harmonized already"):
        install_gradient_harmonization(trainer, weighting="gh")


def test_the_trainer_of_aldi():
    """Its own classes, of https://github.com/justinkay/aldi at 774aaa2, where they can be imported."""
    aldi = pytest.importorskip("aldi.trainer", reason="needs ALDI on the path", exc_type=ImportError)

    class Distiller:
        def distill_enabled(self):
            return False

    class Detector(ToyDetector):
        img_align = True

        def forward(self, batch, labeled=True, do_align=False):
            return super().forward(torch.stack(batch))

    def build(**options):
        model = Detector()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        data = ((list(x[:2]), None, list(x[2:]), None) for x in batches())
        return aldi.ALDISimpleTrainer(model, data, optimizer, Distiller(), model_batch_size=2, **options)

    trainer = build()
    install_gradient_harmonization(trainer, weighting="gh")
    trainer.train(0, 4)
    expected, _ = by_hand("gh", 4)
    assert_close(trainer, expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match=r"SOLVER\.BACKWARD_AT_END"):
        install_gradient_harmonization(build(backward_at_end=False), weighting="gh")
