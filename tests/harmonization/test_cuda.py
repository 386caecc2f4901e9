"""What can only be seen on a GPU; skipped without one. The rest of it is in ``gh-downstream gpu-check``."""

import copy

import pytest
import torch

from gh_downstream.harmonization import Harmonizer, Rescaled, gramian, in_chunks, parse_weighting
from tests.harmonization.networks import TwoHeads, batch

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture
def no_waiting():
    """Waiting for the GPU raises, in what is called between two lines of a test."""
    yield lambda on: torch.cuda.set_sync_debug_mode("error" if on else "default")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_gramian_is_that_of_float64_in_any_type_and_layout(dtype):
    torch.manual_seed(0)
    shapes = [(64, 32, 3, 3), (1000, 1000), (7,), ()]
    rows = [[torch.randn(shape, device="cuda").to(dtype) for shape in shapes] for _ in range(3)]
    rows[0][0] = rows[0][0].contiguous(memory_format=torch.channels_last)
    rows[1][1] = rows[1][1].T
    wide = torch.stack([torch.cat([part.double().flatten() for part in row]) for row in rows])
    torch.testing.assert_close(gramian(rows), wide @ wide.T, rtol=1e-6, atol=1e-2 if dtype != torch.float64 else 1e-6)


@pytest.mark.parametrize("word", ["sum", "gh", "gh++:0.3", "gh++:adaptive", "gh++:guard", "gh++:official"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_no_weighting_waits(word, rescaled, no_waiting):
    weighting = Rescaled(parse_weighting(word), "sum") if rescaled else parse_weighting(word, max_weight=3.0)
    model = TwoHeads().cuda()
    harmonizer = Harmonizer(weighting, model.trunk)
    losses = model(batch().cuda())
    no_waiting(True)
    harmonizer.backward(losses)
    no_waiting(False)
    assert harmonizer.report.weights.is_cuda


def test_a_state_of_the_cpu_goes_on_on_the_gpu():
    on_cpu, on_gpu = TwoHeads(), TwoHeads().cuda()
    first = Harmonizer("gh", on_cpu.trunk, period=2)
    first.backward(on_cpu(batch()))
    second = Harmonizer("gh", on_gpu.trunk, period=2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for harmonizer, model, device in ((first, on_cpu, "cpu"), (second, on_gpu, "cuda")):
        model.zero_grad()
        harmonizer.backward(model(batch(seed=2).to(device)))
    for expected, found in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(found.grad.cpu(), expected.grad, rtol=1e-4, atol=1e-6)


def test_parameters_in_half_precision_keep_gradients_in_it():
    model = TwoHeads().cuda().bfloat16()
    Harmonizer("gh++", model.trunk).backward(model(batch().cuda().bfloat16()))
    assert {parameter.grad.dtype for parameter in model.trunk.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("scale", [1e-36, 1e-23, 1e25])
def test_tiny_and_large_gradients_are_harmonized_as_others_are(scale):
    plus, minus = torch.tensor([3.0, 1.0, 0.0, 2.0]).cuda(), torch.tensor([-2.0, 1.0, 0.5, -1.0]).cuda()
    weights = []
    for factor in (1.0, scale):
        p = torch.nn.Parameter(torch.ones(4, device="cuda"))
        losses = {"alignment": p @ (factor * plus), "task": p @ (factor * minus)}
        weights.append(Harmonizer("gh", p).backward(losses).weights)
    torch.testing.assert_close(weights[1], weights[0])


@pytest.mark.parametrize("period", [1, 2])
def test_parameters_on_two_devices_are_harmonized_as_on_one(period):
    models = [TwoHeads(), TwoHeads()]
    models[1].trunk[2:].cuda()
    models[1].head.cuda()
    reports = []
    for model, device in zip(models, ("cpu", "cuda"), strict=True):
        harmonizer = Harmonizer("gh++", model.trunk, period=period)
        for seed in (1, 2):
            features = model.trunk[2:](model.trunk[:2](batch(seed=seed)).to(device))
            losses = model.losses(features, features.cpu())
            reports.append(harmonizer.backward(losses))
    torch.testing.assert_close(reports[-1].weights.cpu(), reports[1].weights, rtol=1e-4, atol=0)
    for p, q in zip(models[0].trunk.parameters(), models[1].trunk.parameters(), strict=True):
        torch.testing.assert_close(q.grad.cpu(), p.grad, rtol=1e-4, atol=1e-5)


def test_chunks_draw_the_random_numbers_of_the_gpu_again():
    found = []
    for chunked in (False, True):
        torch.manual_seed(0)
        layers = torch.nn.Linear(6, 12), torch.nn.Dropout(0.5), torch.nn.Linear(12, 8)
        trunk, x = torch.nn.Sequential(*layers).cuda().double(), batch().cuda().double()
        features = in_chunks(trunk, x, 5) if chunked else torch.cat([trunk(part) for part in x.split(5)])
        Harmonizer("gh", trunk).backward({"alignment": features.sum(), "task": features.square().sum()})
        found.append([parameter.grad for parameter in trunk.parameters()])
    torch.testing.assert_close(*found)
