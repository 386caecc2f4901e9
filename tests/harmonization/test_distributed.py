"""Two gloo processes, or two groups of two, against one process on the joined batch."""

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from gh_downstream import GH, GHPlusPlus, Harmonizer, fork
from gh_downstream.harmonization.distributed import SCATTERING
from tests.harmonization.networks import ByLosses, TwoHeads, batch

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


UNEVEN = [(3, torch.float32), (1, torch.float64), (5, torch.bfloat16), (2, torch.float32)]
CONSTANT = [(kind, period) for kind in ("constant", "private", "both") for period in (1, 2)]
FAILURES = {
    "constant everywhere": "loss 'alignment' reaches no shared parameter",
    "vector": "loss 'task' has to be a scalar",
    "names": "got losses ['task']",
    "checkpoint": "use_reentrant=False",
    "tasks": "the ranks differ in tasks: rank 0 has ('alignment', 'task'), rank 1 has ('task', 'alignment')",
    "three tasks": "the ranks differ in tasks",
    "period": "the ranks differ in period: rank 0 has 1, rank 1 has 2",
    "shared": "the ranks differ in the number of shared weights",
}


def _cases():
    """Every case that runs in two processes, by name: all of them in one pair of processes, as starting one is slow."""
    return {
        **{f"harmonized {case}": (harmonized, *case, "gradients") for case in HARMONIZED},
        "weigh": (weighed_and_aliased,),
        "losses": (looked_at_losses,),
        "traded off": (traded_off,),
        **{f"scattered {case}": (scattered, harmonized, *case, "gradients") for case in HARMONIZED},
        "scattered weigh": (scattered, weighed_and_aliased),
        "scattered buckets": (scattered, uneven),
        "counted": (counted,),
        "counted scattered": (scattered, counted),
        "averaged gramians": (harmonized, "shared", 1, False, "gramian"),
        "first gramian": (gramian_of_the_first_step,),
        "fork False": (forked, False),
        "fork True": (forked, True),
        "fork on one rank": (forked_on_one_rank,),
        **{f"constant {case}": (constant_on_one_rank, *case) for case in CONSTANT},
        **{f"failure {kind}": (failure, kind) for kind in FAILURES},
        **{f"refusal {kind}": (refusal, kind) for kind in REFUSALS},
    }


@pytest.fixture(scope="module")
def results(ranks):
    """What each rank returned, by case."""
    found = ranks(run_cases)
    return {name: [of_rank[name] for of_rank in found] for name in _cases()}


def scattered(rank, function, *arguments):
    """As over NCCL: gloo can do it, at a higher price."""
    SCATTERING.add("gloo")
    try:
        return function(rank, *arguments)
    finally:
        SCATTERING.remove("gloo")


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


def uneven(rank):
    """Shared parameters of several types, whose lengths the ranks do not divide."""
    model = nn.ParameterList(nn.Parameter(torch.full((n,), 0.5, dtype=kind)) for n, kind in UNEVEN)
    x = torch.arange(1.0, 3.0) if rank is None else torch.arange(1.0, 3.0)[rank : rank + 1]
    outputs = [(p.double() * x.double()[:, None] * torch.arange(1.0, len(p) + 1)).sum(1) for p in model]
    losses = {"task": sum(y.pow(2).mean() for y in outputs), "alignment": -sum(y.sin().mean() for y in outputs)}
    weights = Harmonizer(GHPlusPlus(), shared=model, model=model).backward(losses).weights
    return {"weights": weights, "gradients": [parameter.grad for parameter in model]}


def counted(rank):
    """The collectives of a step of 300 tensors, and of one whose weights are held."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(150)))
    harmonizer = Harmonizer(GHPlusPlus(), shared=model[:100], model=model, period=2)
    counts = []
    for _ in range(3):
        outputs = model(torch.randn(2, 4))
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            harmonizer.backward({"task": outputs.sum(), "alignment": outputs.square().sum()})
        counts.append(sum(event.count for event in profiled.key_averages() if event.key.startswith("c10d::")))
    return counts


def compare(found, expected, rtol=1e-4):
    for k, (name, _) in enumerate(TwoHeads().named_parameters()):
        if not name.startswith("unused"):
            assert torch.equal(found[0]["parameters"][k], found[1]["parameters"][k]), name
            torch.testing.assert_close(found[0]["parameters"][k], expected["parameters"][k], rtol=rtol, atol=1e-6)
    for a, b, c in zip(found[0]["weights"], found[1]["weights"], expected["weights"], strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=rtol, atol=0)


@pytest.mark.parametrize("way", ["harmonized", "scattered"])
@pytest.mark.parametrize("case", HARMONIZED, ids=str)
def test_ranks_agree_and_equal_one_process_on_the_joined_batch(results, case, way):
    scope, period, _ = case
    model = TwoHeads()
    expected = train(model, model, Harmonizer(GHPlusPlus(), shared=model.trunk, scope=scope, period=period).backward)
    compare(results[f"{way} {case}"], expected)


@pytest.mark.parametrize(("way", "most"), [("counted", 6), ("counted scattered", 7)])
def test_a_step_of_many_tensors_takes_few_collectives(results, way, most):
    first, *others = results[way][0]
    assert all(0 < count <= most for count in others)
    assert first <= 12  # with what the ranks tell each other once


def test_weightings_that_look_at_losses_see_their_mean_over_the_ranks(results):
    model = TwoHeads()
    one = train(model, model, Harmonizer(ByLosses(), shared=model.trunk, model=model).backward)
    for of_rank in results["losses"]:
        torch.testing.assert_close(of_rank["weights"], one["weights"])
        torch.testing.assert_close(of_rank["parameters"], one["parameters"])


def test_vectors_whose_length_the_ranks_do_not_divide_are_averaged_whole(results):
    expected = uneven(None)
    for found in results["scattered buckets"]:
        torch.testing.assert_close(found["weights"], expected["weights"])
        for a, b in zip(found["gradients"], expected["gradients"], strict=True):
            torch.testing.assert_close(a, b)


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


def looked_at_losses(rank):
    model = TwoHeads()
    return train(model, model, Harmonizer(ByLosses(), shared=model.trunk, model=model).backward, rank)


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


@pytest.mark.parametrize("way", ["weigh", "scattered weigh"])
def test_gradients_that_share_memory_are_averaged_once(results, way):
    expected = weighed_and_aliased(None)
    for found in results[way]:
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


def fork_step(model, static_graph=None, process_group=None):
    """Forward and backward of the fork; under DDP unless ``static_graph`` is None."""
    reports = []

    class Forked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            alignment, task = fork(model.trunk(x), GH(), on_report=reports.append, process_group=process_group)
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


def forked_on_one_rank(rank):
    """The second rank has nothing for any branch, and says so with a zero that hangs on one of them."""
    model, reports = TwoHeads(), []
    alignment, task = fork(model.trunk(part(rank or 0, 0)), GH(), on_report=reports.append)
    loss = 0 * task.sum() if rank == 1 else sum(model.losses(task, alignment).values())
    loss.backward()
    return reports[0].weights


def test_a_rank_without_losses_keeps_the_step_of_a_fork_with_a_zero(results):
    for weights in results["fork on one rank"]:
        torch.testing.assert_close(weights, forked_on_one_rank(None), rtol=1e-6, atol=0)


def constant_on_one_rank(rank, kind, period):
    """The second rank has nothing for the alignment, or for both: the gradient there is zero."""
    model = TwoHeads()
    harmonizer = Harmonizer(GH(), shared=model.trunk, model=model, period=period)

    def losses(of_rank, step):
        found = model(part(of_rank, step))
        if of_rank == 1:
            nothing = torch.zeros(()) if kind != "private" else model.discriminator.bias.sum()
            found["alignment"] = nothing
            if kind == "both":
                found["task"] = torch.zeros(())
        return found

    weights = []
    for step in range(2):
        model.zero_grad()
        if rank is None:
            both = [losses(k, step) for k in range(2)]
            report = harmonizer.backward({task: (both[0][task] + both[1][task]) / 2 for task in both[0]})
        else:
            report = harmonizer.backward(losses(rank, step))
        weights.append(report.weights)
    return {"gradients": [p.grad for p in model.parameters() if p is not model.unused.weight], "weights": weights}


@pytest.mark.parametrize("case", CONSTANT, ids=str)
def test_a_loss_that_a_rank_has_nothing_for_has_a_gradient_of_zero_there(results, case):
    expected = constant_on_one_rank(None, *case)
    for found in results[f"constant {case}"]:
        for a, b in zip(found["gradients"], expected["gradients"], strict=True):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-4, atol=1e-6)
        for a, b in zip(found["weights"], expected["weights"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=0)


def failure(rank, kind):
    """What goes wrong at one step, at most of the second rank."""
    model = TwoHeads()
    changed = rank == 1
    tasks = (
        {"tasks": ("task", "alignment"), "three tasks": ("task", "alignment", "more")}.get(kind) if changed else None
    )
    shared = [model.trunk, model.head] if changed and kind == "shared" else model.trunk
    period = 2 if changed and kind == "period" else 1
    harmonizer = Harmonizer(GH(), shared, model=model, tasks=tasks or ("alignment", "task"), period=period)
    losses = model(part(rank, 0))
    if kind == "constant everywhere":
        losses["alignment"] = torch.zeros(())
    elif changed and kind == "vector":
        losses["task"] = torch.ones(2, requires_grad=True)
    elif changed and kind == "names":
        losses.pop("alignment")
    elif changed and kind == "checkpoint":
        losses = model.losses(*[checkpoint(model.trunk, part(rank, 0).requires_grad_(), use_reentrant=True)] * 2)
    elif changed and kind == "three tasks":
        losses["more"] = model.trunk(part(rank, 0)).sum()
    try:
        harmonizer.backward(losses)
    except (RuntimeError, ValueError) as error:
        assert all(parameter.grad is None for parameter in model.parameters())
        return str(error)
    return ""


@pytest.mark.parametrize("kind", FAILURES)
def test_an_error_of_one_rank_is_an_error_of_all_and_written_down_on_each(results, kind):
    for message in results[f"failure {kind}"]:
        assert FAILURES[kind] in message


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
        return str(error) if error.__cause__ is None else "Torch's own paragraphs would come first"
    return ""


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_cannot_work_in_several_processes_is_refused_with_advice(results, kind):
    for message in results[f"refusal {kind}"]:
        assert REFUSALS[kind] in message


def run_groups(rank):
    """Two groups that train apart: what one makes, and what goes wrong in it, is none of the other's."""
    groups = [distributed.new_group([0, 2]), distributed.new_group([1, 3])]
    group, place = groups[rank % 2], rank // 2
    found = {}
    for synchronize in ("gradients", "gramian"):
        model = TwoHeads()
        model.unused.requires_grad_(False)
        options = {"synchronize": synchronize, "process_group": group, "period": 2}
        harmonizer = Harmonizer(GHPlusPlus(), shared=model.trunk, model=model, **options)
        found[synchronize] = train(model, lambda x, m=model: m(of_group(rank % 2, x)), harmonizer.backward, place)
    model = TwoHeads()
    forward, backward = fork_step(model, process_group=group)
    losses = [forward(of_group(rank % 2, part(place, step))) for step in range(STEPS)]
    found["fork"] = torch.stack([backward(loss).weights for loss in losses])
    harmonizer = Harmonizer(GH(), shared=model.trunk, model=model, process_group=group)
    losses = model(part(place, 0))
    if rank == 2:
        losses.pop("task")
    try:
        harmonizer.backward(losses)
        found["failure"] = ""
    except (RuntimeError, ValueError) as error:
        found["failure"] = str(error)
    try:
        Harmonizer(GH(), shared=model.trunk, process_group=distributed.new_group([0]))
        found["outside"] = ""
    except TypeError as error:
        found["outside"] = str(error)
    return found


def of_group(group, x):
    return x if group == 0 else 2 * x.flip(1)


def test_groups_train_apart(ranks):
    found = ranks(run_groups, number=4)
    for group in range(2):
        model = TwoHeads()
        model.unused.requires_grad_(False)
        harmonizer = Harmonizer(GHPlusPlus(), shared=model.trunk, period=2)
        expected = train(model, lambda x, m=model, g=group: m(of_group(g, x)), harmonizer.backward)
        compare([found[group]["gradients"], found[group + 2]["gradients"]], expected)
        assert torch.equal(found[group]["gramian"]["weights"][0], found[group + 2]["gramian"]["weights"][0])
        forward, backward = fork_step(TwoHeads())
        losses = [forward(of_group(group, batch(seed=step))) for step in range(STEPS)]
        expected = torch.stack([backward(loss).weights for loss in losses])
        torch.testing.assert_close(found[group]["fork"], expected, rtol=1e-4, atol=0)
        assert torch.equal(found[group]["fork"], found[group + 2]["fork"])
    assert not torch.equal(found[0]["gradients"]["weights"][0], found[1]["gradients"]["weights"][0])
    assert [bool(of_rank["failure"]) for of_rank in found] == [True, False, True, False]
    assert "on rank 2: ValueError: the tasks of this harmonizer" in found[0]["failure"]
    assert ["mesh.get_group" in of_rank["outside"] for of_rank in found] == [False, True, True, True]
