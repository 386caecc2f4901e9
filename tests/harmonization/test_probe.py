"""The Gramians of single batches, layer by layer."""

import pytest
import torch
from torch import nn

from gh_downstream import GH, Harmonizer, Probe
from gh_downstream.harmonization import HarmonizationConfig
from gh_downstream.harmonization.probe import MOST_LAYERS, ProbeConfig
from tests.harmonization.networks import TwoHeads, batch, flat, gradients


def test_the_layers_sum_to_the_gramian_of_autograd_and_nothing_is_touched():
    model = TwoHeads()
    probe = Probe(GH(), shared=["trunk"], model=model)
    for seed in range(3):
        report = probe.weigh(model(batch(seed=seed)))
        losses = model(batch(seed=seed))
        rows = torch.stack([flat(gradients(losses[task], model), "trunk") for task in probe.tasks])
        torch.testing.assert_close(probe.gramians[seed].sum(0), rows @ rows.T, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(probe.gramians[seed].sum(0), report.gramian)
    assert len(probe.gramians) == len(probe.factors) == 3
    assert len(probe.layers) > 1
    assert all(layer.startswith("trunk.") for layer in probe.layers)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_layer_holds_its_own_parameters():
    model = TwoHeads()
    probe = Probe("gh", shared=model.trunk, model=model)
    probe.weigh(model(batch()))
    losses = model(batch())
    for layer, gramian in zip(probe.layers, probe.gramians[0], strict=True):
        rows = torch.stack([flat(gradients(losses[task], model), layer) for task in probe.tasks])
        torch.testing.assert_close(gramian, rows @ rows.T, rtol=1e-5, atol=1e-9)


def test_a_backward_pass_is_that_of_a_harmonizer():
    probed, plain = TwoHeads(), TwoHeads()
    probe = Probe("gh", shared=probed.trunk)
    probe.backward(probed(batch()), {"alignment": 0.5})
    Harmonizer("gh", shared=plain.trunk).backward(plain(batch()), {"alignment": 0.5})
    assert probe.factors == [[0.5, 1.0]]
    for a, b in zip(probed.parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("given", ["module", "modules", "parameters"])
def test_layers_have_names_without_a_model(given):
    first, second = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    parameters = [*first.parameters(), *second.parameters()]
    shared = {"module": nn.Sequential(first, second), "modules": [first, second], "parameters": parameters}[given]
    probe = Probe("gh", shared=shared)
    out = second(first(torch.ones(2, 3)))
    probe.weigh({"alignment": out[:, 0].sum(), "task": out[:, 1].square().sum()})
    assert probe.layers == (["others"] if given == "parameters" else ["0", "1.0", "1.1"])


def test_layers_are_grouped_where_there_are_many():
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(MOST_LAYERS)))
    probe = Probe("gh", shared=blocks)
    out = blocks(torch.ones(2, 2))
    probe.weigh({"alignment": out[:, 0].sum(), "task": out[:, 1].square().sum()})
    assert probe.layers == [str(k) for k in range(MOST_LAYERS)]


def test_the_settings_of_a_training_measure_every_batch_and_keep_its_tasks():
    settings = HarmonizationConfig(weighting="sum", period=4, warmup_steps=10, max_weight=10.0, shared=["trunk"])
    model = TwoHeads()
    probe = ProbeConfig.of(settings).build_harmonizer(model)
    assert isinstance(probe, Probe)
    for _ in range(3):
        probe.weigh(model(batch()))
    assert len(probe.gramians) == 3
    assert probe.weighting == GH(max_weight=10.0)
    with pytest.raises(ValueError, match="measure=features"):
        ProbeConfig.of(HarmonizationConfig(weighting="gh", measure="features"))


def probe_in_process(rank):
    probe = Probe("gh", shared=(model := TwoHeads()).trunk, model=model)
    with pytest.raises(ValueError, match="one process"):
        probe.weigh(model(batch()))


def test_several_processes_are_refused(ranks):
    ranks(probe_in_process)
