"""The losses of the methods against numbers that their authors' code, or that of a known library, gives.

The inputs are made from a formula. The numbers were printed by the code that each case names, in double precision:

- TLLib: https://github.com/thuml/Transfer-Learning-Library, c4aa59e
- GVB: https://github.com/cuishuhao/GVB, d2a7ea6
- SSRT: https://github.com/tsun/SSRT, 0bf39fd
- DWL: https://github.com/NiXiao-cqu/TransferLearning-dwl-cvpr2021, 525aab8

They add 1e-5, 1e-6 or 1e-8 to what they take a logarithm of, ours mostly nothing: hence the tolerance.
"""

import math

import pytest
import torch
from torch import nn

from gh_downstream.classification.backbones import Backbone
from gh_downstream.classification.methods.dwl import DWL
from gh_downstream.classification.methods.mcd import imbalance
from gh_downstream.classification.methods.ssrt import CollapseGuard
from tests.classification import tiny_domains as tiny

CLOSE = {"rtol": 1e-4, "atol": 3e-5}


def wave(*shape, at):
    return (1.5 * torch.sin(at + 1.7 * torch.arange(math.prod(shape), dtype=torch.float64))).reshape(shape)


def linear(*shape, at, bias):
    layer = nn.Linear(shape[1], shape[0]).double()
    with torch.no_grad():
        layer.weight.copy_(wave(*shape, at=at))
        layer.bias.fill_(bias)
    return layer


def prepared(name, **options):
    """A method on features of 3 entries, with 3 classes, and a batch of 4 source and 4 target ones."""
    method = tiny.method_of(name, Backbone(nn.Identity(), 3), 3, options).double()
    method.classifier = linear(3, 3, at=1.0, bias=0.0)
    source, target = (wave(4, 3, at=at).requires_grad_() for at in (0.0, 0.5))
    batch = {"source_images": source, "source_labels": torch.tensor([0, 1, 2, 1]), "target_images": target}
    return method, batch


def check(loss, value, gradients):
    """Compare a loss and its gradients with rounded numbers."""
    assert loss.item() == pytest.approx(value, 1e-4)
    found = torch.autograd.grad(loss, list(gradients), retain_graph=True)
    for gradient, expected in zip(found, gradients.values(), strict=True):
        torch.testing.assert_close(gradient.flatten(), torch.tensor(expected, dtype=torch.float64), **CLOSE)


def test_dann():
    """TLLib, tllib/alignment/dann.py, with its reversal after 3000 calls."""
    method, batch = prepared("dann")
    method.discriminator = linear(1, 3, at=2.0, bias=0.25)
    loss = method(**batch, progress=0.3)["alignment"]["loss_domain"]
    gradients = {
        batch["source_images"]: [
            *(0.09562, -0.05572, -0.08126, 0.1503, -0.08758, -0.12773),
            *(0.13491, -0.07861, -0.11465, 0.01207, -0.00703, -0.01026),
        ],
        batch["target_images"]: [
            *(-0.1253, 0.07301, 0.10649, -0.00908, 0.00529, 0.00772),
            *(-0.00578, 0.00337, 0.00491, -0.10063, 0.05863, 0.08552),
        ],
        method.discriminator.weight: [0.32605, -0.07799, -0.30595],
        method.discriminator.bias: [-0.12321],
    }
    check(loss, 1.199357, gradients)


def test_cdan():
    """TLLib, tllib/alignment/cdan.py: the multilinear map, whose predictions pass no gradient."""
    method, batch = prepared("cdan", entropy=False)
    method.discriminator = linear(1, 9, at=2.0, bias=0.25)
    loss = method(**batch, progress=0.3)["alignment"]["loss_domain"]
    gradients = {
        batch["source_images"]: [
            *(0.02437, 0.01025, -0.02702, -0.00593, 0.01959, 0.00088),
            *(-0.03413, 0.09725, 0.00907, 0.01858, -0.00705, -0.01677),
        ],
        batch["target_images"]: [
            *(-0.12723, 0.0449, 0.11566, -0.00019, -0.11833, 0.03068),
            *(0.04031, -0.11415, -0.01089, 0.00438, -0.02452, 0.00193),
        ],
        method.discriminator.weight: [
            *(0.05208, 0.11298, -0.08119, -0.01674, 0.04299, 0.00566, -0.09643, 0.09822, 0.07112)
        ],
    }
    check(loss, 0.828991, gradients)


def test_cdan_with_entropy():
    """GVB, CDAN-GD/loss.py: the weights pass a gradient of their own, reversed, their sums none."""
    method, batch = prepared("cdan")
    method.discriminator = linear(1, 9, at=2.0, bias=0.25)
    loss = method(**batch, progress=0.3)["alignment"]["loss_domain"]
    gradients = {
        batch["source_images"]: [
            *(0.02091, 0.00723, -0.02277, -0.00488, 0.02205, -0.0008),
            *(-0.03325, 0.11518, 0.00356, 0.01319, -0.00599, -0.01164),
        ],
        batch["target_images"]: [
            *(-0.15612, 0.05836, 0.14109, 0.01832, -0.09871, 0.00712),
            *(0.05338, -0.12865, -0.02023, 0.00923, -0.02176, -0.00362),
        ],
        method.classifier.weight: [
            *(-0.01885, -0.01912, 0.02378, -0.0082, 0.02412, 0.00199, 0.02705, -0.005, -0.02576)
        ],
        method.discriminator.weight: [
            *(0.05093, 0.11009, -0.0793, -0.01455, 0.04229, 0.00366, -0.09913, 0.09807, 0.07386)
        ],
    }
    check(loss, 0.838446, gradients)


def test_mcd():
    """TLLib, tllib/alignment/mcd.py: what it calls entropy, and the discrepancy."""
    method, batch = prepared("mcd", entropy_weight=1.0)
    method.classifier2 = linear(3, 3, at=4.0, bias=0.0)
    losses = method(**batch, progress=0.3, phase="generator")
    leaves = batch["target_images"], method.classifier.weight, method.classifier2.weight
    gradients = [
        [
            *(0.04806, -0.0174, -0.04357, -0.14838, -0.08291, 0.16974),
            *(-0.01765, -0.00265, 0.01834, -0.2606, 0.04324, 0.24946),
        ],
        [0.02427, 0.0607, -0.03992, 0.07662, -0.11003, -0.04827, -0.10089, 0.04933, 0.08818],
        [-0.04287, -0.13651, 0.07805, 0.03381, 0.13628, -0.06893, 0.00906, 0.00023, -0.00912],
    ]
    check(losses["task"]["loss_entropy"], 2.559672, dict(zip(leaves, gradients, strict=True)))
    gradients = [
        [
            *(0.00864, 0.00605, -0.0102, -0.02484, 0.00164, 0.02442),
            *(-0.00373, 0.00135, 0.00338, -0.06329, -0.01758, 0.06782),
        ],
        [0.00434, 0.0201, -0.00952, 0.00098, 0.01591, -0.00508, -0.00532, -0.03601, 0.0146],
        [-0.01355, 0.00699, 0.01175, 0.00478, -0.01651, -0.00053, 0.00877, 0.00952, -0.01122],
    ]
    check(losses["alignment"]["loss_discrepancy"], 0.608844, dict(zip(leaves, gradients, strict=True)))


def test_mcd_pays_for_predictions_of_one_class_alone():
    """TLLib: 9.21034 and 12.43396 for 8 images of one class, of 3 and of 10."""
    for classes, expected in ((3, 9.21034), (10, 12.43396)):
        alone = torch.zeros(8, classes, dtype=torch.float64)
        alone[:, 0] = 40.0
        assert imbalance(alone).item() == pytest.approx(expected, 1e-5)
        balanced = 40.0 * torch.eye(classes, dtype=torch.float64)
        assert imbalance(balanced).item() == pytest.approx(math.log(classes), 1e-5)


def test_gvb():
    """GVB, GVB-GD/loss.py: the weights are e^-H; each bridge counts once."""
    method, batch = prepared("gvb", hidden_layers=0)
    method.bridge = linear(3, 3, at=4.0, bias=0.0)
    method.discriminator.logit = linear(1, 3, at=2.0, bias=0.25)
    method.discriminator.bridge = linear(1, 3, at=3.0, bias=0.25)
    losses = method(**batch, progress=0.3)["alignment"]
    source, target = batch["source_images"], batch["target_images"]
    of_bridge = [0.01618, 0.01054, -0.01889, -0.00449, -0.0111, 0.00735, -0.01169, 0.00056, 0.01154]
    gradients = {
        source: [
            *(0.02254, -0.01279, -0.01925, 0.02146, 0.02123, -0.02693),
            *(0.00153, 0.00149, -0.00191, -0.0106, 0.00105, 0.01033),
        ],
        target: [
            *(-0.06376, 0.03023, 0.05597, -0.00811, -0.0083, 0.01025),
            *(0.00016, 0.00016, -0.0002, 0.00515, 0.0019, -0.00564),
        ],
        method.classifier.weight: [-x for x in of_bridge],
        method.bridge.weight: of_bridge,
        method.discriminator.logit.weight: [0.05798, -0.01014, -0.15224],
        method.discriminator.bridge.weight: [-0.05798, 0.01014, 0.15224],
    }
    check(losses["loss_domain"], 0.807047, gradients)
    gradients = {
        source: [
            *(0.08973, 0.0838, -0.11133, -0.12962, 0.03882, 0.11962),
            *(-0.08973, -0.0838, 0.11133, 0.03502, -0.10766, -0.00728),
        ],
        method.bridge.weight: [*(-0.21176, -0.19852, 0.26292, 0.10245, -0.34589, -0.01332, 0.26135, 0.07835, -0.28154)],
    }
    check(losses["loss_generator_bridge"], 2.087659, gradients)
    gradients = {
        source: [
            *(0.1046, -0.05452, -0.09055, 0.00347, 0.00344, -0.00435),
            *(0.00015, 0.00015, -0.00019, -0.00588, 0.00258, 0.00521),
        ],
        method.classifier.weight: [
            *(-0.0059, 0.04551, -0.00582, 0.03829, -0.09538, -0.01371, -0.03239, 0.04988, 0.01953)
        ],
        method.discriminator.bridge.weight: [0.21252, -0.1201, 0.40758],
    }
    check(losses["loss_discriminator_bridge"], 0.421373, gradients)


class OneBlock(nn.Module):
    """A transformer of one block, which leaves its tokens as they are."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity()])

    def forward(self, tokens):
        return self.blocks[0](tokens)


def test_ssrt():
    """SSRT, model/SSRT.py: twice the cross-entropy of the domains, with a reversal of 0.1, and both refinements."""
    method = tiny.method_of("ssrt", Backbone(OneBlock(), 3), 3, {"interval": None, "confidence": 0.6}).double()
    _, batch = prepared("dann")
    source, target = batch["source_images"], batch["target_images"]
    method.classifier = linear(3, 3, at=1.0, bias=0.0)
    method.discriminator = linear(1, 3, at=2.0, bias=0.25)
    losses = method(**batch, progress=0.3)["alignment"]
    gradients = {
        source: [
            *(0.01912, -0.01114, -0.01625, 0.03006, -0.01752, -0.02555),
            *(0.02698, -0.01572, -0.02293, 0.00241, -0.00141, -0.00205),
        ],
        target: [
            *(-0.02506, 0.0146, 0.0213, -0.00182, 0.00106, 0.00154),
            *(-0.00116, 0.00067, 0.00098, -0.02013, 0.01173, 0.0171),
        ],
        method.discriminator.weight: [0.65209, -0.15598, -0.6119],
    }
    check(losses["loss_domain"], 2.398714, gradients)
    of_weights = {
        0.137723: [0.01632, 0.0299, -0.02402, -0.00263, 0.04372, -0.00864, -0.01369, -0.07362, 0.03266],
        0.051402: [0.00074, 0.01846, -0.0055, -0.01869, 0.03077, 0.01076, 0.01794, -0.04923, -0.00526],
    }
    seen = set()
    for seed in range(8):  # which prediction is the model of the other is drawn
        torch.manual_seed(seed)
        loss = method(**batch, progress=0.3)["alignment"]["loss_refinement"] / 0.2
        value = min(of_weights, key=lambda value: abs(value - loss.item()))
        check(loss, value, {method.classifier.weight: of_weights[value]})
        seen.add(value)
    assert seen == set(of_weights)


@pytest.mark.parametrize(
    ("diversities", "returns"),
    [
        ((6, 4, 6, 6, 4, 2, 2, 1, 6, 6), [(8, 4), (20, 4), (24, 8), (28, 16), (32, 32)]),
        (((6, 6, 2, 2), 6, 6, 3, 6), [(4, 8), (16, 8)]),
        ((6, 6, 6, 4, 2, 6), [(16, 4), (20, 8)]),
    ],
)
def test_ssrt_trains_safely(diversities, returns):
    """SSRT, model/SSRT.py: steps at which weights are given up, with the length of the rise that follows."""
    guard, found = CollapseGuard(4, 2), []
    for diversity in diversities:
        for classes in (diversity,) * 4 if isinstance(diversity, int) else diversity:
            if guard.at_boundary() and guard.begin_interval():
                found.append((int(guard.counters[0]), int(guard.counters[2])))
            guard.note(nn.functional.one_hot(torch.arange(8) % classes, 8).double())
    assert found == returns


def test_dwl():
    """DWL, digital/classification/solver.py: loss_3 of the classifiers, loss_5 of the generator."""
    method, batch = prepared("dwl")
    assert isinstance(method, DWL)
    method.classifier1, method.classifier2 = linear(3, 3, at=4.0, bias=0.0), linear(3, 3, at=5.0, bias=0.0)
    sides = method(**batch, progress=0.3, phase="classifiers")
    weights = [classifier.weight for classifier in (method.classifier, method.classifier1, method.classifier2)]
    gradients = [
        [0.12145, -0.55974, 0.02279, 0.18184, 0.3915, -0.28272, -0.30328, 0.16823, 0.25993],
        [-0.56678, -0.33359, 0.65274, 0.26649, -0.07941, -0.24603, 0.30028, 0.413, -0.40671],
        [-0.46912, -0.01134, 0.47204, 0.05744, 0.01234, -0.06062, 0.41168, -0.001, -0.41142],
    ]
    loss = sides["task"]["loss_classifiers"] + sides["alignment"]["loss_disagreement"]
    check(loss, 6.967142, dict(zip(weights, gradients, strict=True)))
    assert method.balance.value == 0.5
    loss = method(**batch, progress=0.3, phase="generator")["task"]["loss_discrepancy"] / 0.5
    gradient = [
        *(0.01729, 0.0121, -0.02041, -0.0393, 0.00688, 0.03753),
        *(0.00889, -0.06496, 0.00785, -0.18784, -0.0196, 0.19289),
    ]
    check(loss, 1.312229, {batch["target_images"]: gradient})
