"""Gradients packed into flat vectors: what comes out is what went in, and few operations are left of many tensors."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gh_downstream import GHPlusPlus, Harmonizer
from gh_downstream.harmonization import buckets
from gh_downstream.harmonization.buckets import Buckets

LAYOUTS = {
    "contiguous": torch.randn(4, 3, 2, 5),
    "channels last": torch.randn(4, 3, 2, 5).to(memory_format=torch.channels_last),
    "channels last, one pixel": torch.randn(4, 3, 1, 1).to(memory_format=torch.channels_last),
    "transposed": torch.randn(6, 4).T,
    "with gaps": torch.randn(4, 8)[:, ::2],
    "scalar": torch.randn(()),
    "empty": torch.randn(0, 3),
    "double": torch.randn(3, dtype=torch.float64),
    "complex": torch.randn(3, dtype=torch.complex64),
    "bfloat16": torch.randn(5, 2).bfloat16(),
}
# Neither views, nor what makes a tensor without writing to it.
FREE = {
    "view",
    "as_strided",
    "split",
    "split_with_sizes",
    "t",
    "transpose",
    "permute",
    "expand",
    "detach",
    "select",
} | {
    *("unsqueeze", "squeeze", "slice", "alias", "diagonal", "_reshape_alias", "unbind", "_unsafe_view", "is_same_size"),
    *("empty", "empty_like", "promote_types"),
}


class Operations(TorchDispatchMode):
    """Counts the operations that cost a kernel."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        self.found[name] += name not in FREE
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("limit", [1, 40, buckets.LIMIT])
def test_unpacked_gradients_are_those_that_were_packed(monkeypatch, limit):
    monkeypatch.setattr(buckets, "LIMIT", limit)
    parameters = [tensor.detach().requires_grad_() for tensor in LAYOUTS.values()]
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    given = [*gradients]
    given[2] = None
    packing = Buckets(parameters, first=4)
    vectors = packing.packed(given)
    assert given == [None] * len(parameters)
    assert all(vector.ndim == 1 and vector.dtype.itemsize >= 4 for vector in vectors)
    # The first vectors hold the first parameters and no others.
    assert sum(len(v) for v in vectors[: packing.first]) == sum(p.numel() for p in parameters[:4])
    unpacked = packing.unpacked(vectors)
    assert unpacked[2] is None
    for name, parameter, gradient, found in zip(LAYOUTS, parameters, gradients, unpacked, strict=True):
        if name != "channels last, one pixel":
            torch.testing.assert_close(found, gradient, rtol=0, atol=0, msg=name)
            assert name == "with gaps" or found.stride() == parameter.stride(), name


def test_a_gradient_of_another_layout_than_its_parameter_keeps_its_values():
    parameter = nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    for gradient in (torch.randn(2, 3, 4, 5), torch.randn(1).expand(2, 3, 4, 5)):
        packing = Buckets([parameter])
        (found,) = packing.unpacked(packing.packed([gradient]))
        assert torch.equal(found, gradient)
        assert found.stride() == parameter.stride()


def test_with_every_parameters_without_a_gradient_get_zeros():
    parameters = [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2))]
    packing = Buckets(parameters, every=True)
    found = packing.unpacked(packing.packed([torch.ones(3), None]))
    assert [gradient.tolist() for gradient in found] == [[1, 1, 1], [0, 0]]


def own_operations(trunk, x):
    """Operations of a harmonizer of a whole network, without those of two plain backward passes."""

    def losses():
        trunk.zero_grad()
        outputs = trunk(x)
        return {"alignment": outputs.square().mean(), "task": outputs.abs().mean()}

    with Operations() as plain:
        found = losses()
        found["alignment"].backward(retain_graph=True)
        trunk.zero_grad()
        found["task"].backward()
    harmonizer = Harmonizer(GHPlusPlus(), trunk)
    with Operations() as harmonized:
        harmonizer.backward(losses())
    return (harmonized.found - plain.found).total()


@pytest.mark.parametrize(("model", "most"), [("resnet50", 80), ("vit_b_32", 120)])
def test_many_tensors_cost_an_accelerator_few_operations(model, most):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):  # An accelerator that computes nothing.
        trunk, images = getattr(models, model)(), torch.randn(2, 3, 224, 224)
    assert own_operations(trunk, images) <= most


def test_small_tensors_cost_a_cpu_few_operations():
    layers = [layer for _ in range(40) for layer in (nn.Linear(16, 16), nn.Tanh())]
    assert own_operations(nn.Sequential(*layers), torch.randn(8, 16)) <= 70
