"""The scalar whose backward harmonizes, in a loop that knows a single loss."""

import pytest
import torch
from torch import nn

from gh_downstream import GH, Harmonizer, Sum
from gh_downstream.integrations.joint_loss import JointLoss


def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"trunk": nn.Linear(4, 3), "head": nn.Linear(3, 1)}).double()


def losses(net):
    x = torch.arange(8.0, dtype=torch.float64).reshape(2, 4)
    task = net["head"](net["trunk"](x)).square().mean()
    return {"task": task, "alignment": -0.7 * task + net["trunk"](x).square().mean()}


def gradient(net):
    return torch.cat([parameter.grad.flatten() for parameter in net.parameters()])


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_backward_is_that_of_the_harmonizer_times_what_arrives(scale):
    net, other = model(), model()
    joint = JointLoss(Harmonizer(GH(), net["trunk"]))
    total = joint(losses(net))
    assert total == sum(losses(net).values())
    (scale * total).backward()
    report = Harmonizer(GH(), other["trunk"]).backward(losses(other))
    assert (report.weights != 1).any()  # They are in conflict.
    torch.testing.assert_close(gradient(net), scale * gradient(other), rtol=1e-12, atol=0)
    torch.testing.assert_close(joint.harmonizer.report.weights, report.weights, rtol=1e-12, atol=0)


@pytest.mark.parametrize("weighting", [Sum(), "sum", "sum:length=sum", "sum:max_weight=2"], ids=str)
def test_the_weighting_sum_is_the_plain_step_bit_for_bit_and_measures(weighting):
    net, other = model(), model()
    joint = JointLoss(Harmonizer(weighting, net["trunk"]))
    joint(losses(net)).backward()
    sum(losses(other).values()).backward()
    assert torch.equal(gradient(net), gradient(other))
    assert joint.read()["gh/weight/task"] == 1


def test_it_reads_the_means_since_the_last_time():
    net = model()
    joint = JointLoss(Harmonizer(GH(), net["trunk"]))
    assert joint.read() == {}
    values = losses(net)
    joint(values).backward()
    joint({task: 3 * loss for task, loss in losses(net).items()}).backward()
    metrics = joint.read()
    assert metrics["gh/loss/alignment"] == pytest.approx(2 * values["alignment"].item())
    assert metrics["gh/conflict_rate"] == 1
    assert joint.read() == {}


def test_its_state_is_that_of_the_harmonizer():
    net = model()
    joint, other = (JointLoss(Harmonizer(GH(), net["trunk"], period=2)) for _ in range(2))
    joint(losses(net)).backward()
    other.harmonizer.load_state_dict(joint.harmonizer.state_dict())
    net.zero_grad()
    other({task: loss.square() for task, loss in losses(net).items()}).backward()  # Held, so not measured.
    assert torch.equal(other.harmonizer.report.weights, joint.harmonizer.report.weights)


def test_mistakes_are_told():
    net = model()
    with pytest.raises(TypeError, match="losses by task, got Tensor"):
        JointLoss(Harmonizer(GH(), net["trunk"]))(losses(net)["task"])
    for none in ({}, {"task": 1.0}):
        with pytest.raises(ValueError, match="there is no loss"):
            JointLoss(Harmonizer(GH(), net["trunk"]))(none)


def test_weights_of_losses_belong_to_the_losses():
    with pytest.raises(ValueError, match="loss_weights"):
        JointLoss(Harmonizer("gh", shared=model()["trunk"], loss_weights={"task": 2.0}))
