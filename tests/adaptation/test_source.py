import pytest
import torch
from torch import nn

from gh_downstream.adaptation import encode_source, mmd, number_reached


class Trunk(nn.Module):
    """Features as a tensor or by name; keeps on how many images it ran, forward and backward."""

    def __init__(self, named):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.named, self.forwards, self.backwards = nn.Linear(3, 4).double(), named, [], []

    def forward(self, x):
        features = self.layer(x).tanh()
        self.forwards.append(len(x))
        features.register_hook(lambda gradient: self.backwards.append(len(gradient)))
        return {"p2": features, "p3": 2 * features} if self.named else features


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.01, 1), (0.25, 2), (0.26, 3), (1, 8)])
def test_the_gradient_of_the_alignment_reaches_the_share_alone(named, share, count):
    trunk, x, target = Trunk(named), torch.randn(8, 3).double(), torch.randn(5, 4).double()
    for_task, for_alignment = encode_source(trunk, x, share)
    if named:
        assert list(for_task) == list(for_alignment) == ["p2", "p3"]
        for_task, for_alignment = for_task["p3"] / 2, for_alignment["p3"] / 2
    whole = trunk.layer(x).tanh()
    assert trunk.forwards == [n for n in (8 - count, count) if n]
    torch.testing.assert_close(for_task, whole)
    torch.testing.assert_close(for_alignment, whole)
    loss = mmd(for_alignment, target)
    assert loss.requires_grad == (count > 0)
    if count:
        (found,) = torch.autograd.grad(loss, trunk.layer.weight, retain_graph=True)
        expected = mmd(torch.cat([whole[:count], whole[count:].detach()]), target)
        torch.testing.assert_close(found, *torch.autograd.grad(expected, trunk.layer.weight, retain_graph=True))
    assert trunk.backwards == [count] * (count > 0)  # Not through the others.
    (found,) = torch.autograd.grad(for_task.square().sum(), trunk.layer.weight)
    torch.testing.assert_close(found, *torch.autograd.grad(whole.square().sum(), trunk.layer.weight))


def test_a_share_of_whole_images_is_not_rounded_up():
    assert all(number_reached(100, percent / 100) == percent for percent in range(101))
    assert number_reached(0, 0.5) == 0
