"""Two gloo processes against one process on the joined batch."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from gh_downstream import GH, GHPlusPlus, Harmonizer, fork
from tests.harmonization.networks import TwoHeads, batch

pytestmark = pytest.mark.slow

STEPS = 4
HARMONIZED = [("shared", 1, False), ("all", 1, True), ("shared", 2, True), ("all", 3, False)]
REFUSALS = {
    "default": "no_sync",
    "unused": "no_sync",
    "static": "no_sync",
    "no model": "pass model=",
    "wrapper": "module inside DistributedDataParallel",
}


def _cases():
    """Every case that runs in two processes, by name: all of them in one pair of processes, as starting one is slow."""
    return {
        **{f"harmonized {case}": (harmonized, *case, "gradients") for case in HARMONIZED},
        "weigh": (weighed_and_aliased,),
        "traded off": (traded_off,),
        "averaged gramians": (harmonized, "shared", 1, False, "gramian"),
        "first gramian": (gramian_of_the_first_step,),
        "fork False": (forked, False),
        "fork True": (forked, True),
        **{f"refusal {kind}": (refusal, kind) for kind in REFUSALS},
    }


@pytest.fixture(scope="module")
def results(ranks):
    """What each rank returned, by case."""
    found = ranks(run_cases)
    return {name: [of_rank[name] for of_rank in found] for name in _cases()}


def run_cases(rank):
    return {name: function(rank, *arguments) for name, (function, *arguments) in _cases().items()}


def part(rank, step):
    return batch(seed=step).chunk(2)[rank]


def train(model, forward, backward, rank=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    weights = []
    for step in range(STEPS):
        optimizer.zero_grad()
        report = backward(forward(batch(seed=step) if rank is None else part(rank, step)))
        weights.append(report.weights)
        optimizer.step()
    return {"parameters": [p.detach() for p in model.parameters()], "weights": weights}


def harmonized(rank, scope, period, wrapped, synchronize):
    model = TwoHeads()
    if rank == 1 and not wrapped:
        with torch.no_grad():  # An unused parameter may differ; nothing else may depend on the rank.
            model.unused.weight.zero_()
    harmonizer = Harmonizer(
        GHPlusPlus(), shared=model.trunk, model=model, scope=scope, period=period, synchronize=synchronize
    )
    if not wrapped:
        return train(model, model, harmonizer.backward, rank)
    ddp = DistributedDataParallel(model)

    def forward(x):
        with ddp.no_sync():
            return ddp(x)

    return train(model, forward, harmonizer.backward, rank)


def compare(found, expected, rtol=1e-4):
    for k, (name, _) in enumerate(TwoHeads().named_parameters()):
        if not name.startswith("unused"):
            assert torch.equal(found[0]["parameters"][k], found[1]["parameters"][k]), name
            torch.testing.assert_close(found[0]["parameters"][k], expected["parameters"][k], rtol=rtol, atol=1e-6)
    for a, b, c in zip(found[0]["weights"], found[1]["weights"], expected["weights"], strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=rtol, atol=0)


@pytest.mark.parametrize("case", HARMONIZED, ids=str)
def test_ranks_agree_and_equal_one_process_on_the_joined_batch(results, case):
    scope, period, _ = case
    model = TwoHeads()
    expected = train(model, model, Harmonizer(GHPlusPlus(), shared=model.trunk, scope=scope, period=period).backward)
    compare(results[f"harmonized {case}"], expected)


def test_averaged_gramians_keep_the_ranks_together_and_over_estimate_the_norms(results):
    found = results["averaged gramians"]
    for k, (name, _) in enumerate(TwoHeads().named_parameters()):
        if not name.startswith("unused"):
            assert torch.equal(found[0]["parameters"][k], found[1]["parameters"][k]), name
    whole = TwoHeads()
    exact = Harmonizer(GHPlusPlus(), shared=whole.trunk).backward(whole(batch(seed=0)))
    first, second = results["first gramian"]
    assert torch.equal(first, second)
    assert (first.diagonal() > exact.gramian.diagonal()).all()


def gramian_of_the_first_step(rank):
    model = TwoHeads()
    harmonizer = Harmonizer(GHPlusPlus(), shared=model.trunk, model=model, synchronize="gramian")
    return harmonizer.backward(model(part(rank, 0))).gramian


def weighed_and_aliased(rank):
    """Two shared parameters, and two private ones, whose gradients autograd returns as one tensor."""
    p, q, r, s = (torch.nn.Parameter(torch.full((4,), 0.5)) for _ in range(4))
    model = torch.nn.ParameterList([p, q, r, s])
    x = torch.arange(1.0, 9.0).reshape(2, 4)
    x = x if rank is None else x[rank : rank + 1]

    def losses():
        z = x * (p + q) + (r.view(-1) + s.view(-1))
        return {"alignment": z.mean(), "task": -(z * torch.tensor([2.0, 1.0, 0.5, 3.0])).pow(2).mean()}

    harmonizer = Harmonizer(GH(), shared=[p, q], model=model)
    weighed = harmonizer.weigh(losses()).gramian
    measured = harmonizer.backward(losses()).gramian
    return {"weighed": weighed, "measured": measured, "gradients": [parameter.grad for parameter in model]}


def test_gradients_that_share_memory_are_averaged_once(results):
    expected = weighed_and_aliased(None)
    for found in results["weigh"]:
        torch.testing.assert_close(found["weighed"], expected["weighed"])
        torch.testing.assert_close(found["measured"], expected["measured"])
        for a, b in zip(found["gradients"], expected["gradients"], strict=True):
            torch.testing.assert_close(a, b)


def traded_off(rank):
    model = TwoHeads()
    harmonizer = Harmonizer(GHPlusPlus(), shared=model.trunk, model=model, period=2)
    return train(model, model, lambda losses: harmonizer.backward(losses, {"alignment": 0.3}), rank)


def test_trade_offs_equal_those_of_one_process(results):
    compare(results["traded off"], traded_off(None))


def forked(rank, static_graph):
    model = TwoHeads()
    model.unused.requires_grad_(False)
    return train(model, *fork_step(model, static_graph), rank=rank)


def fork_step(model, static_graph=None):
    """Forward and backward of the fork; under DDP unless ``static_graph`` is None."""
    reports = []

    class Forked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            alignment, task = fork(model.trunk(x), GH(), on_report=reports.append)
            return sum(model.losses(task, alignment).values())

    module = Forked()
    if static_graph is not None:
        module = DistributedDataParallel(module, static_graph=static_graph)

    def backward(loss):
        loss.backward()
        return reports[-1]

    return module, backward


@pytest.mark.parametrize("static_graph", [False, True])
def test_fork_under_ddp_equals_one_process_on_the_joined_batch(results, static_graph):
    model = TwoHeads()
    compare(results[f"fork {static_graph}"], train(model, *fork_step(model)))


def refusal(rank, kind):
    model = TwoHeads()
    model.unused.requires_grad_(False)
    try:
        if kind == "no model":
            Harmonizer(GH(), shared=model.trunk).backward(model(part(rank, 0)))
        elif kind == "wrapper":
            Harmonizer(GH(), shared=DistributedDataParallel(model))
        else:
            options = {"static": {"static_graph": True}, "unused": {"find_unused_parameters": True}, "default": {}}
            ddp = DistributedDataParallel(model, **options[kind])
            harmonizer = Harmonizer(GH(), shared=model.trunk, model=model)
            for step in range(2):
                model.zero_grad()
                harmonizer.backward(ddp(part(rank, step)))
    except (RuntimeError, ValueError, TypeError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_cannot_work_in_several_processes_is_refused_with_advice(results, kind):
    for message in results[f"refusal {kind}"]:
        assert REFUSALS[kind] in message
