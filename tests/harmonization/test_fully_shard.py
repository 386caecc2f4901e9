"""Parameters in slices (``fully_shard``, tensor parallelism) in several processes, against one on all samples."""

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from gh_downstream import GH, GHPlusPlus, Harmonizer
from gh_downstream.harmonization.chunks import in_chunks
from tests.harmonization.networks import ByLosses, TwoHeads, batch

pytestmark = pytest.mark.slow

STEPS = 3
OPTIONS = {
    "shared": {},
    "all": {"scope": "all"},
    "period": {"period": 2},
    "period of all": {"scope": "all", "period": 3},
    "gramian": {"synchronize": "gramian"},  # exact for what is sharded
    "losses": {"weighting": ByLosses()},
}
SHARDED = {
    "nested": lambda model: [model.trunk[0], model.trunk, model.head, model],
    "whole": lambda model: [model],
    "trunk alone": lambda model: [model.trunk],
    "a layer alone": lambda model: [model.trunk[0]],
    "head alone": lambda model: [model.head],
}
CASES = [
    (sharded, name)
    for sharded in SHARDED
    for name in OPTIONS
    if name not in ("gramian", "losses") or sharded in ("nested", "whole")
]
REFUSED = {
    "one rank": "reaches no shared parameter on some of the ranks",
    "no reduction": "set_requires_gradient_sync(True)",
    "no model": "pass model=",
    "chunks": "leave it out",
    "flat": "use torch.distributed.fsdp.fully_shard",
}


class Checkpointed(TwoHeads):
    def forward(self, x):
        features = checkpoint(self.trunk, x, use_reentrant=False)
        return self.losses(features, features)


def network(kind=TwoHeads):
    model = kind()
    model.unused.requires_grad_(False)
    return model


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train(model, harmonizer, place=0, number=1, weigh=False, optimizer=None):
    optimizer = optimizer or optimizer_of(model)
    weights = []
    for step in range(STEPS):
        optimizer.zero_grad()
        losses = model(batch(seed=step).chunk(number)[place])
        if weigh:
            weights.append(harmonizer.weigh(losses).weights)
            assert all(parameter.grad is None for parameter in model.parameters())
            sum(w.float() * losses[task] for task, w in zip(harmonizer.tasks, weights[-1], strict=True)).backward()
        else:
            weights.append(harmonizer.backward(losses).weights)
        optimizer.step()
    return {"weights": weights, "state": {name: whole(value) for name, value in model.state_dict().items()}}


def expected(options=(), weigh=False):
    model = network()
    options = {key: value for key, value in dict(options).items() if key != "synchronize"}
    return train(model, Harmonizer(**{"weighting": GHPlusPlus(), "shared": model.trunk} | options), weigh=weigh)


def compare(found, expected):
    for of_rank in found:
        torch.testing.assert_close(of_rank, expected, rtol=1e-5, atol=1e-6)
        assert all(torch.equal(a, b) for a, b in zip(of_rank["weights"], found[0]["weights"], strict=True))


def shard(rank, sharded, name, weigh=False, mesh=None, late=False, reshard=True, kind=TwoHeads):
    """Train a model of which ``fully_shard`` has some modules."""
    model, number = network(kind), distributed.get_world_size()
    options = {"weighting": GHPlusPlus(), "shared": ["trunk"], "model": model} | OPTIONS[name]
    harmonizer = Harmonizer(**options) if late else None
    for module in SHARDED[sharded](model):
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard)
    optimizer = optimizer_of(model)
    with torch.no_grad():
        model(batch())  # An evaluation before the training, after which some parameters are whole.
    harmonizer = harmonizer or Harmonizer(**options)
    return train(model, harmonizer, rank, number, weigh, optimizer)


def in_half(rank):
    """Weights and gradient in bfloat16, and the gradient of each loss, each from a forward pass of its own."""
    model = network()
    for module in SHARDED["nested"](model):
        fully_shard(module, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    x = batch().chunk(2)[rank]
    gradients = {}
    for task in ("alignment", "task", "harmonized"):
        model.zero_grad()
        if task == "harmonized":
            report = Harmonizer(GHPlusPlus(), shared=model.trunk, model=model).backward(model(x))
        else:
            model(x)[task].backward()
        gradients[task] = torch.cat([whole(parameter.grad).flatten() for parameter in model.trunk.parameters()])
    return gradients | {"weights": report.weights, "gramian": report.gramian}


def accumulated(rank):
    """Two batches add up, hooks run on the sum over the losses, and an overflow on one rank reaches all."""
    model = network()
    if rank is not None:
        for module in SHARDED["nested"](model):
            fully_shard(module)
    seen = []
    model.trunk[0].weight.register_hook(lambda gradient: seen.append(whole(gradient).clone()))
    harmonizer = Harmonizer(GHPlusPlus(), shared=model.trunk, model=model)
    for step in range(2):
        x = batch(seed=step)
        harmonizer.backward(model(x if rank is None else x.chunk(2)[rank]))
    gradients = {name: whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}
    losses = model(batch() if rank is None else batch().chunk(2)[rank])
    if rank != 0:
        losses["task"] = losses["task"] * float("inf")
    report = harmonizer.backward(losses)
    finite = bool(whole(model.trunk[0].weight.grad).isfinite().all())
    return {"seen": seen[:2], "gradients": gradients, "overflow": report.weights, "finite": finite}


def counted(rank):
    """The collectives of a step that ``fully_shard`` does not make."""
    model = network()
    for module in SHARDED["nested"](model):
        fully_shard(module)
    harmonizer = Harmonizer(GHPlusPlus(), shared=model.trunk, model=model)
    for _ in range(2):
        losses = model(batch().chunk(2)[rank])
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            harmonizer.backward(losses)
    counts = {event.key.removeprefix("c10d::"): event.count for event in profiled.key_averages()}
    return {name: counts.get(name, 0) for name in ("allreduce_", "broadcast_")}


def refused(rank, kind):
    model = network()
    if kind == "flat":
        model.trunk = FullyShardedDataParallel(model.trunk, device_id=torch.device("cpu"))
    else:
        fully_shard(model.trunk if kind == "chunks" else model)
    x = batch().chunk(2)[rank]
    try:
        harmonizer = Harmonizer(
            GH(), shared=list(model.parameters()) if kind == "no model" else model.trunk, model=model
        )
        if kind == "no model":
            harmonizer = Harmonizer(GH(), shared=[model.head.weight])
        if kind == "no reduction":
            model.set_requires_gradient_sync(False)
        losses = model.losses(*[in_chunks(model.trunk, x, 4)] * 2) if kind == "chunks" else model(x)
        if kind == "one rank" and rank == 1:
            losses["alignment"] = torch.zeros(())
        harmonizer.backward(losses)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


def _pair():
    return {
        **{f"{case}": (shard, *case) for case in CASES},
        "weigh": (shard, "nested", "shared", True),
        "weigh all": (shard, "nested", "all", True),
        "weigh period": (shard, "whole", "period", True),
        "late": (shard, "nested", "shared", False, None, True),
        "not resharded": (shard, "nested", "shared", False, None, False, False),
        "checkpointed": (shard, "nested", "shared", False, None, False, True, Checkpointed),
        "accumulated": (accumulated,),
        "in half": (in_half,),
        "counted": (counted,),
        **{f"refused {kind}": (refused, kind) for kind in REFUSED},
    }


def run_pair(rank):
    return {name: function(rank, *arguments) for name, (function, *arguments) in _pair().items()}


@pytest.fixture(scope="module")
def results(ranks):
    found = ranks(run_pair)
    return {name: [of_rank[name] for of_rank in found] for name in _pair()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_equal_one_process(results, case):
    compare(results[f"{case}"], expected(OPTIONS[case[1]]))


@pytest.mark.parametrize("case", ["late", "not resharded", "checkpointed"])
def test_when_and_how_it_is_sharded_makes_no_difference(results, case):
    compare(results[case], expected())


@pytest.mark.parametrize(("case", "options"), [("weigh", {}), ("weigh all", {}), ("weigh period", {"period": 2})])
def test_weighed_alone_two_ranks_equal_one_process(results, case, options):
    compare(results[case], expected(options, weigh=True))


def test_gradients_add_up_hooks_run_once_and_an_overflow_reaches_all(results):
    one = accumulated(None)
    for found in results["accumulated"]:
        torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-6)
        assert found["overflow"].tolist() == [1, 1]
        assert not found["finite"]


def test_in_half_precision_what_is_combined_is_what_each_loss_alone_gives(results):
    for found in results["in half"]:
        gradients = torch.stack([found["alignment"], found["task"]]).double()
        torch.testing.assert_close(found["gramian"], gradients @ gradients.T, rtol=1e-6, atol=0)
        torch.testing.assert_close(found["harmonized"].double(), found["weights"] @ gradients, rtol=1e-5, atol=1e-6)


def test_beside_those_of_fully_shard_a_step_takes_three_collectives(results):
    assert results["counted"][0] == {"allreduce_": 2, "broadcast_": 1}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_work_is_refused_with_the_cure(results, kind):
    for message in results[f"refused {kind}"]:
        assert REFUSED[kind] in message


def tensor_parallel(model, mesh):
    plan = {"trunk.0": ColwiseParallel(), "trunk.2": RowwiseParallel()}
    return parallelize_module(model, mesh, plan)


def run_four(rank):
    plane = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    found = {
        "four": shard(rank, "nested", "shared"),
        "to two": shard(rank, "nested", "shared", reshard=2),
        "hybrid": shard(rank, "nested", "all", mesh=plane),
        "hybrid, a layer": shard(rank, "a layer alone", "period", mesh=plane),
    }
    for name, group in (("both", plane.get_group("dp")), ("tensor parallel", plane.get_group("dp"))):
        model = tensor_parallel(network(), plane["tp"])
        if name == "both":
            fully_shard(model.trunk, mesh=plane["dp"])
        harmonizer = Harmonizer(GHPlusPlus(), shared=model.trunk, model=model, process_group=group)
        found[name] = train(model, harmonizer, plane.get_local_rank("dp"), 2)
    try:
        Harmonizer(GHPlusPlus(), shared=model.trunk, model=model).backward(model(batch()))
    except ValueError as error:
        found["no group"] = str(error)
    harmonizer = Harmonizer(GHPlusPlus(), shared=model.trunk, model=model, process_group=plane.get_group("dp"))
    losses = model(batch())
    if rank == 3:
        losses.pop("task")
    try:
        harmonizer.backward(losses)
    except (ValueError, RuntimeError) as error:
        found["failure"] = str(error)
    return found


@pytest.fixture(scope="module")
def four(ranks):
    found = ranks(run_four, number=4)
    return {name: [of_rank[name] for of_rank in found] for name in found[0]}


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("four", "shared"),
        ("to two", "shared"),
        ("hybrid", "all"),
        ("hybrid, a layer", "period"),
        ("both", "shared"),
        ("tensor parallel", "shared"),
    ],
)
def test_four_ranks_equal_one_process(four, case, options):
    compare(four[case], expected(OPTIONS[options]))


def test_over_the_wrong_ranks_nothing_is_averaged_and_all_ranks_hear_of_an_error(four):
    assert all("give process_group=" in message for message in four["no group"])
    assert all("the tasks of this harmonizer" in message for message in four["failure"])
