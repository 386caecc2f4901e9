import copy
import math
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gh_downstream import GH, GHPlusPlus, GHPlusPlusOfficial, Harmonizer, Sum
from tests.harmonization.networks import TwoHeads, batch, flat, gradients

WEIGHTINGS = [Sum(), GH(), GHPlusPlus(), GHPlusPlus("adaptive")]


def expected_weights(model, losses, weighting):
    """Weights from autograd's own gradients, concatenated in float64; order: alignment, task."""
    rows = torch.stack([flat(gradients(losses[task], model), "trunk") for task in ("alignment", "task")])
    return weighting(rows @ rows.T), rows


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
def test_shared_parameters_get_the_weighted_sum_and_private_ones_the_plain_one(weighting):
    model = TwoHeads()
    losses = model(batch())
    weights, rows = expected_weights(model, losses, weighting)
    assert (rows[0] @ rows[1]).item() < 0
    by_task = {task: gradients(loss, model) for task, loss in losses.items()}
    report = Harmonizer(weighting, shared=model.trunk).backward(losses)
    torch.testing.assert_close(report.weights, weights, rtol=1e-5, atol=0)
    for name, parameter in model.named_parameters():
        w = weights.float() if name.startswith("trunk") else torch.ones(2)
        if name.startswith("unused"):
            assert parameter.grad is None
        else:
            expected = w[0] * by_task["alignment"][name] + w[1] * by_task["task"][name]
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
def test_scope_all_is_the_backward_of_the_weighted_loss(weighting):
    model = TwoHeads()
    losses = model(batch())
    weights, _ = expected_weights(model, losses, weighting)
    total = weights[0].float() * losses["alignment"] + weights[1].float() * losses["task"]
    expected = gradients(total, model)
    Harmonizer(weighting, shared=model.trunk, scope="all").backward(losses)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)
    assert {n for n, p in model.named_parameters() if p.grad is None} == {"unused.weight", "unused.bias"}


def test_without_conflict_and_with_sum_it_is_the_plain_backward():
    model, plain = TwoHeads(), TwoHeads()
    losses = model(batch())
    losses["alignment"] = losses["alignment"] + 2 * (model.trunk(batch()) ** 2).sum(1).mean()
    same = plain(batch())
    same["alignment"] = same["alignment"] + 2 * (plain.trunk(batch()) ** 2).sum(1).mean()
    report = Harmonizer(GH(), shared=model.trunk).backward(losses)
    (same["task"] + same["alignment"]).backward()
    assert not report.conflict
    assert report.weights.tolist() == [1.0, 1.0]
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)


def test_gradients_accumulate_into_the_existing_tensors():
    model = TwoHeads()
    harmonizer = Harmonizer(GH(), shared=model.trunk)
    harmonizer.backward(model(batch(seed=1)))
    first = {n: (p.grad, p.grad.clone()) for n, p in model.named_parameters() if p.grad is not None}
    once = TwoHeads()
    Harmonizer(GH(), shared=once.trunk).backward(once(batch(seed=2)))
    second = {n: p.grad for n, p in once.named_parameters()}
    harmonizer.backward(model(batch(seed=2)))
    for name, parameter in model.named_parameters():
        if name in first:
            assert parameter.grad is first[name][0]
            torch.testing.assert_close(parameter.grad, first[name][1] + second[name])


def test_the_report_says_what_was_measured():
    model = TwoHeads()
    losses = model(batch())
    weights, rows = expected_weights(model, losses, GH())
    values = Harmonizer(GH(), shared=model.trunk).backward(losses).as_dict()
    cosine = (rows[0] @ rows[1] / rows[0].norm() / rows[1].norm()).item()
    assert values["cosine"] == pytest.approx(cosine, rel=1e-5)
    assert values["angle"] == pytest.approx(math.degrees(math.acos(cosine)), rel=1e-5)
    assert values["norm/alignment"] == pytest.approx(rows[0].norm().item(), rel=1e-5)
    assert values["norm/task"] == pytest.approx(rows[1].norm().item(), rel=1e-5)
    assert values["weight/alignment"] == pytest.approx(weights[0].item(), rel=1e-5)
    assert values["gain"] == pytest.approx(((weights @ rows).norm() / rows.sum(0).norm()).item(), rel=1e-5)
    assert values["conflict"] == 1
    assert values["opposed"] == 0


def test_the_report_tells_an_update_that_still_opposes_a_task():
    a = nn.Parameter(torch.tensor([1.0, 0.0]))
    losses = {"alignment": 10 * a[0], "task": -a[0] + 0.1 * a[1]}
    assert Harmonizer(Sum(), shared=[a]).backward(losses).opposed
    losses = {"alignment": 10 * a[0], "task": -a[0] + 0.1 * a[1]}
    assert not Harmonizer(GH(), shared=[a]).backward(losses).opposed


@pytest.mark.parametrize("multiplied", [False, True])
def test_loss_weights_count_before_the_gramian_is_measured(multiplied):
    model = TwoHeads()
    losses = model(batch())
    loss_weights = {"alignment": 3.0, "task": 0.5}
    weighted = {task: loss_weights[task] * loss for task, loss in losses.items()}
    weights, rows = expected_weights(model, weighted, GH())
    if multiplied:
        Harmonizer(GH(), shared=model.trunk).backward(weighted)
    else:
        Harmonizer(GH(), shared=model.trunk, loss_weights=loss_weights).backward(losses)
    found = flat({n: p.grad for n, p in model.named_parameters() if n.startswith("trunk")}, "trunk")
    torch.testing.assert_close(found, weights @ rows, rtol=1e-4, atol=1e-5)
    # The guarantee of GH holds for the weighted losses; weights applied afterwards would break it.
    assert (rows @ found >= -1e-5 * rows.norm(dim=1) * found.norm()).all()


@pytest.mark.parametrize("scope", ["shared", "all"])
@pytest.mark.parametrize("factor", [0.0, 0.25, -2.0])
def test_trade_offs_count_after_the_gramian_is_measured_at_held_weights_too(scope, factor):
    model = TwoHeads()
    harmonizer = Harmonizer(GH(), shared=model.trunk, scope=scope, period=2)
    measured, _ = expected_weights(model, model(batch(seed=1)), GH())
    for seed in (1, 2):
        model.zero_grad()
        losses = model(batch(seed=seed))
        by_task = {task: gradients(loss, model) for task, loss in losses.items()}
        report = harmonizer.backward(losses, trade_offs={"alignment": factor})
        torch.testing.assert_close(report.weights, measured, rtol=1e-5, atol=0)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                weighed = name.startswith("trunk") or scope == "all"
                w = measured.float() * torch.tensor([factor, 1.0]) if weighed else torch.ones(2)
                expected = w[0] * by_task["alignment"][name] + w[1] * by_task["task"][name]
                torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("wrong", "message"), [({"algnment": 1.0}, "algnment"), ({"task": math.inf}, "finite")])
def test_a_wrong_trade_off_is_named_before_a_gradient_is_written(wrong, message):
    model = TwoHeads()
    with pytest.raises(ValueError, match=message):
        Harmonizer(GH(), shared=model.trunk).backward(model(batch()), trade_offs=wrong)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_ramp_outside_of_what_is_measured_is_not_undone_by_a_weighting_of_directions():
    def bisector(gramian):  # Unit vectors, in the length of the sum: it does not see the norms.
        return gramian.diagonal().rsqrt()

    model = TwoHeads()
    inside = Harmonizer(bisector, shared=model.trunk)
    losses = model(batch())
    inside.backward({"task": losses["task"], "alignment": 1e-3 * losses["alignment"]})
    ramped_inside = [parameter.grad for parameter in model.trunk.parameters()]
    model.zero_grad()
    inside.backward(model(batch()))
    for parameter, grad in zip(model.trunk.parameters(), ramped_inside, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)
    model.zero_grad()
    outside = inside.backward(model(batch()), trade_offs={"alignment": 1e-3})
    task = gradients(model(batch())["task"], model)
    for name, parameter in model.trunk.named_parameters():
        torch.testing.assert_close(
            parameter.grad, outside.weights[1].float() * task[f"trunk.{name}"], rtol=0.1, atol=1e-3
        )


def test_the_order_of_the_dictionary_does_not_matter_and_the_names_do():
    a, b = TwoHeads(), TwoHeads()
    losses = b(batch())
    Harmonizer(GHPlusPlus(0.1), shared=a.trunk).backward(a(batch()))
    Harmonizer(GHPlusPlus(0.1), shared=b.trunk).backward({"alignment": losses["alignment"], "task": losses["task"]})
    for p, q in zip(a.trunk.parameters(), b.trunk.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_three_tasks():
    model = TwoHeads()
    losses = model(batch())
    losses["sparsity"] = model.trunk(batch()).abs().mean()
    rows = torch.stack([flat(gradients(loss, model), "trunk") for loss in losses.values()])
    Harmonizer(GH(), shared=model.trunk, tasks=list(losses)).backward(losses)
    found = flat({n: p.grad for n, p in model.named_parameters() if n.startswith("trunk")}, "trunk")
    torch.testing.assert_close(found, GH()(rows @ rows.T) @ rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scope", ["shared", "all"])
def test_between_measurements_the_weights_are_held(scope):
    model = TwoHeads()
    harmonizer = Harmonizer(GH(), shared=model.trunk, scope=scope, period=3)
    first = harmonizer.backward(model(batch(seed=1)))
    for seed in (2, 3):
        model.zero_grad()
        losses = model(batch(seed=seed))
        by_task = {task: gradients(loss, model) for task, loss in losses.items()}
        assert harmonizer.backward(losses) is first
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                held = name.startswith("trunk") or scope == "all"
                w = first.weights.float() if held else torch.ones(2)
                expected = w[0] * by_task["alignment"][name] + w[1] * by_task["task"][name]
                torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)
    assert harmonizer.backward(model(batch(seed=4))) is not first


def test_the_state_continues_a_period_exactly(tmp_path):
    def run(model, harmonizer, seeds):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for seed in seeds:
            optimizer.zero_grad()
            harmonizer.backward(model(batch(seed=seed)))
            optimizer.step()

    whole = TwoHeads()
    run(whole, Harmonizer(GH(), shared=whole.trunk, period=4), range(7))
    model = TwoHeads()
    harmonizer = Harmonizer(GH(), shared=model.trunk, period=4)
    run(model, harmonizer, range(2))
    torch.save({"model": model.state_dict(), "harmonizer": harmonizer.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = TwoHeads(seed=9)
    resumed.load_state_dict(state["model"])
    harmonizer = Harmonizer(GH(), shared=resumed.trunk, period=4)
    harmonizer.load_state_dict(state["harmonizer"])
    run(resumed, harmonizer, range(2, 7))
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


def test_ways_to_name_the_shared_parameters():
    model = TwoHeads()
    reference = list(model.trunk.parameters())
    for shared in (model.trunk, model.trunk.parameters(), reference + reference):
        assert [id(p) for p in Harmonizer(GH(), shared=shared).shared] == [id(p) for p in reference]
    for shared in ("trunk", ["trunk"], ["trunk.*"], ["trunk.2", "trunk.0.weight", "trunk.0.bias"]):
        assert [id(p) for p in Harmonizer(GH(), shared=shared, model=model).shared] == [id(p) for p in reference]
    assert Harmonizer(GH(), shared=["*.0.weight"], model=model).shared[0] is model.trunk[0].weight
    mixed = Harmonizer(GH(), shared=[model.trunk[2], model.trunk[0].bias, "head", model.trunk], model=model).shared
    order = [*model.trunk[2].parameters(), model.trunk[0].bias, model.trunk[0].weight, *model.head.parameters()]
    assert [id(p) for p in mixed] == [id(p) for p in order]
    assert len(Harmonizer(GH(), shared=[model.trunk[0], model.head]).shared) == 4
    assert len(Harmonizer(GH(), shared=(module for module in model.trunk)).shared) == 4


def test_frozen_shared_parameters_are_left_alone():
    model = TwoHeads()
    for parameter in model.trunk[0].parameters():
        parameter.requires_grad_(False)
    losses = model(batch())
    rows = torch.stack(
        [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(losses[t], model.trunk[2].parameters(), retain_graph=True)]
            )
            for t in ("alignment", "task")
        ]
    ).double()
    report = Harmonizer(GH(), shared=model.trunk).backward(losses)
    torch.testing.assert_close(report.gramian, rows @ rows.T, rtol=1e-5, atol=1e-8)
    assert all(parameter.grad is None for parameter in model.trunk[0].parameters())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: Harmonizer(GH(), shared=m.trunk, tasks=("a", "a")), ValueError, "different names"),
        (lambda m: Harmonizer(GH(), shared=m.trunk, tasks="task"), ValueError, "different names"),
        (lambda m: Harmonizer(GH(), shared=m.trunk, scope="everything"), ValueError, "scope is one of"),
        (lambda m: Harmonizer(GH(), shared=m.trunk, period=0), ValueError, "period"),
        (lambda m: Harmonizer(GH(), shared=m.trunk, synchronize="no"), ValueError, "synchronize is"),
        (lambda m: Harmonizer(GH(), shared=m.trunk, loss_weights={"tsk": 1.0}), ValueError, "tsk"),
        (
            lambda m: Harmonizer(GH(), shared=m.trunk, loss_weights={"task": math.nan}),
            ValueError,
            "task must be finite",
        ),
        (lambda m: Harmonizer(GH(), shared=["trunk"]), TypeError, "which need the model"),
        (lambda m: Harmonizer(GH(), shared=["trnk"], model=m), ValueError, "'trnk' matches no.*trunk, head"),
        (lambda m: Harmonizer(GH(), shared=[]), ValueError, "no shared parameters"),
        (lambda m: Harmonizer(GH(), shared=[1.0]), TypeError, "takes parameters"),
        (lambda m: Harmonizer(GH(), shared=[m.trunk, None]), TypeError, "got NoneType"),
        (lambda m: Harmonizer(GH(), shared=nn.Tanh()), ValueError, "have no parameters"),
        (lambda m: Harmonizer(GH, shared=m.trunk), TypeError, "the class GH"),
        (lambda m: Harmonizer("gh+++", shared=m.trunk), ValueError, r"'gh\+\+\+': there are sum, gh"),
        (lambda m: Harmonizer("gh", m.trunk, loss_weights={"task": True}), ValueError, "task must be a number"),
        (lambda m: Harmonizer(GH(), shared=m.trunk.requires_grad_(False)), ValueError, "frozen"),
    ],
)
def test_a_mistake_in_the_construction_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make(TwoHeads())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, x: {"task": m(x)["task"]}, r"are \['alignment', 'task'\], got losses \['task'\]: at a step without"),
        (lambda m, x: m(x) | {"other": m(x)["task"]}, r"got losses .*'other'\]: name them with"),
        (lambda m, x: {"aligment": m(x)["alignment"], "task": m(x)["task"]}, "aligment"),
        (lambda m, x: {**m(x), "alignment": m.trunk(x)}, "'alignment' has to be a scalar"),
        (lambda m, x: {**m(x), "alignment": 0.0}, "'alignment' has to be a scalar"),
        (lambda m, x: {**m(x), "alignment": m(x)["alignment"].detach()}, "'alignment' reaches no shared parameter"),
        (lambda m, x: {**m(x), "task": m.unused(x[:, :2]).mean()}, "'task' reaches no shared parameter"),
    ],
)
def test_a_mistake_in_the_losses_is_named_before_a_gradient_is_written(change, message):
    model = TwoHeads()
    with pytest.raises(ValueError, match=message):
        Harmonizer(GH(), shared=model.trunk).backward(change(model, batch()))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("weighting", ["gh", "gh++", "gh++:adaptive"])
def test_a_loss_of_zero_leaves_the_other_as_it_is(weighting):
    alone, both = TwoHeads(), TwoHeads()
    alone(batch())["task"].backward()
    losses = both(batch())
    report = Harmonizer(weighting, shared=both.trunk).backward(losses | {"alignment": 0 * losses["alignment"]})
    assert report.weights.tolist() == [1, 1]
    for expected, found in zip(alone.trunk.parameters(), both.trunk.parameters(), strict=True):
        assert torch.equal(expected.grad, found.grad)


def test_a_failure_in_a_backward_pass_leaves_the_gradients_of_the_shared_parameters_as_they_were():
    model = TwoHeads()
    harmonizer = Harmonizer(GH(), shared=model.trunk)
    harmonizer.backward(model(batch()))
    before = [p.grad.clone() for p in model.trunk.parameters()]
    losses = model(batch())
    losses["task"].register_hook(lambda gradient: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        harmonizer.backward(losses)
    assert all(torch.equal(p.grad, b) for p, b in zip(model.trunk.parameters(), before, strict=True))


def test_non_reentrant_checkpointing_works():
    model, plain = TwoHeads(), TwoHeads()
    features = checkpoint(model.trunk, batch(), use_reentrant=False)
    Harmonizer(GH(), shared=model.trunk).backward(model.losses(features, features))
    Harmonizer(GH(), shared=plain.trunk).backward(plain(batch()))
    for p, q in zip(model.trunk.parameters(), plain.trunk.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_reentrant_checkpointing_is_refused_with_advice():
    model = TwoHeads()
    features = checkpoint(model.trunk, batch().requires_grad_(), use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        Harmonizer(GH(), shared=model.trunk).backward(model.losses(features, features))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_compiled_module_that_the_losses_share_is_refused_and_one_of_a_single_loss_is_not():
    model, plain = TwoHeads(), TwoHeads()
    harmonizer = Harmonizer(GH(), shared=model.trunk)
    features = torch.compile(model.trunk, backend="aot_eager")(batch())
    with pytest.raises(RuntimeError, match=r"torch\.compile"):
        harmonizer.backward(model.losses(features, features))
    model.zero_grad()
    compiled = torch.compile(model.trunk, backend="aot_eager")
    harmonizer.backward(model.losses(compiled(batch()), model.trunk(batch())))
    Harmonizer(GH(), shared=plain.trunk).backward(plain(batch()))
    for p, q in zip(model.trunk.parameters(), plain.trunk.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("autocast", [False, True])
def test_graphs_that_the_losses_do_not_share_are_freed_as_they_are_used(autocast):
    """Under autocast both forward passes go through the same casts of the weights."""
    models, alive = [TwoHeads(), TwoHeads()], []

    def note(gradient):
        alive.append(sum(each() is not None for each in kept))

    for model, cache_enabled in zip(models, (True, False), strict=True):
        kept = []
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast, cache_enabled=cache_enabled):
            handle = model.trunk[1].register_forward_hook(lambda m, x, y, kept=kept: kept.append(weakref.ref(y)))
            alignment = model(batch(seed=1))["alignment"]
            handle.remove()
            task = model(batch(seed=2))["task"]
        task.register_hook(note)
        assert len(kept) == 1
        Harmonizer(GH(), shared=model.trunk).backward({"alignment": alignment, "task": task})
        with pytest.raises(RuntimeError, match="second time"):
            alignment.backward()
    assert alive == [0, 0]
    for ours, expected in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)


def test_a_graph_is_kept_where_a_node_that_the_losses_share_keeps_tensors():
    """Here the copy into a slice, which has them in a node of its own."""
    model = TwoHeads()
    bias = torch.ones(16, 6)
    bias[:, 0].mul_(model.trunk[0].bias[0])
    losses = {"alignment": model(batch() + bias)["alignment"], "task": model(batch() + bias)["task"]}
    expected = {task: gradients(loss, model)["trunk.0.bias"] for task, loss in losses.items()}
    Harmonizer(Sum(), shared=model.trunk).backward(losses)
    torch.testing.assert_close(model.trunk[0].bias.grad, sum(expected.values()))


def test_bf16_autocast_gives_the_gradients_of_its_own_losses():
    model = TwoHeads()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch())
    weights, rows = expected_weights(model, losses, GHPlusPlus())
    report = Harmonizer(GHPlusPlus(), shared=model.trunk).backward(losses)
    torch.testing.assert_close(report.weights, weights, rtol=1e-4, atol=0)
    found = flat({n: p.grad for n, p in model.named_parameters() if n.startswith("trunk")}, "trunk")
    torch.testing.assert_close(found, weights @ rows, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_are_combined_in_float32(dtype):
    w = nn.Parameter(torch.tensor([1.0, 1.0, 1.0], dtype=dtype))
    a, b = torch.tensor([3.0, 1.0, 0.0], dtype=dtype), torch.tensor([-2.0, 1.0, 0.0], dtype=dtype)
    report = Harmonizer(GH(), shared=[w]).backward({"alignment": (w * a).sum(), "task": (w * b).sum()})
    exact = report.weights[0] * a.double() + report.weights[1] * b.double()
    assert w.grad.dtype == dtype
    assert torch.equal(w.grad, exact.to(dtype))


def scaled_step(scale: float, factor: float = 1.0):
    """One step of a scaler on the CPU; its state, and the parameters before and after."""
    model = TwoHeads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    before = copy.deepcopy(model.state_dict())
    losses = {task: scaler.scale(loss * factor) for task, loss in model(batch()).items()}
    report = Harmonizer(GH(), shared=model.trunk).backward(losses)
    scaler.step(optimizer)
    scaler.update()
    return model.state_dict(), before, scaler, report


def test_a_grad_scaler_s_scale_changes_nothing():
    scaled, before, _, report = scaled_step(2.0**16)
    model = TwoHeads()
    plain = Harmonizer(GH(), shared=model.trunk).backward(model(batch()))
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    torch.testing.assert_close(report.weights, plain.weights, rtol=1e-6, atol=0)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(scaled[name], value)
    assert not torch.equal(scaled["trunk.0.weight"], before["trunk.0.weight"])


def test_an_overflow_reaches_the_grad_scaler_which_skips_the_step():
    after, before, scaler, report = scaled_step(2.0**16, factor=1e36)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert scaler.get_scale() == 2.0**15
    assert report.weights.tolist() == [1.0, 1.0]


def test_any_callable_is_a_weighting():
    model = TwoHeads()
    losses = model(batch())
    task = gradients(losses["task"], model)
    Harmonizer(lambda gramian: torch.tensor([0.0, 2.0]), shared=model.trunk).backward(losses)
    torch.testing.assert_close(model.trunk[0].weight.grad, 2 * task["trunk.0.weight"])


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="torch 2.6 shards on a GPU alone")
@pytest.mark.parametrize(("sharded", "before"), [("model.trunk", True), ("model.trunk", False), ("model", False)])
def test_sharded_over_one_process_the_gradients_are_those_of_the_whole(sharded, before):
    # In a process of its own: a device mesh needs a process group, which must not leak into other tests.
    code = """
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from gh_downstream import GH, Harmonizer
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
gradients = []
for sharded in (False, True):
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.trunk, model.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
    if sharded and BEFORE:
        fully_shard(SHARDED, mesh=mesh)
    harmonizer = Harmonizer(GH(), shared=model.trunk, model=model)
    if sharded and not BEFORE:
        fully_shard(SHARDED, mesh=mesh)
    outputs = model(torch.ones(2, 4))
    harmonizer.backward({"task": outputs.sum(), "alignment": -outputs.pow(2).sum()})
    gradients.append([getattr(p.grad, "_local_tensor", p.grad) for p in model.parameters()])
torch.testing.assert_close(*gradients)
print("equal")
""".replace("BEFORE", str(before)).replace("SHARDED", sharded)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "equal", result.stderr


def test_importing_the_package_needs_nothing_but_torch():
    code = """
import sys, torch
before = set(sys.modules)
import gh_downstream, gh_downstream.adaptation
new = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(new))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['gh_downstream']"


def test_a_tied_weight_is_found_under_each_of_its_names():
    model = nn.ModuleDict({"first": nn.Linear(3, 3), "second": nn.Linear(3, 3)})
    model["second"].weight = model["first"].weight
    assert Harmonizer(GH(), shared="second.weight", model=model).shared == [model["first"].weight]
    assert Harmonizer(GH(), shared=model["first"].weight).shared == [model["first"].weight]


def test_a_compiled_module_of_a_single_loss_is_run_once_at_held_weights_too():
    model, plain = TwoHeads(), TwoHeads()
    compiled = torch.compile(model.trunk, backend="aot_eager")
    for each, trunk in ((model, compiled), (plain, plain.trunk)):
        harmonizer = Harmonizer(GH(), shared=each.trunk, period=2)
        for _ in range(2):
            harmonizer.backward(each.losses(trunk(batch()), each.trunk(batch())))
    for p, q in zip(model.trunk.parameters(), plain.trunk.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_compiled_module_that_weighing_alone_would_run_twice_is_refused():
    model = TwoHeads()
    compiled = torch.compile(model.trunk, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"torch\.compile"):
        Harmonizer(GH(), shared=model.trunk).weigh(model.losses(compiled(batch()), model.trunk(batch())))


@pytest.mark.parametrize("period", [1, 2])
def test_weighing_alone_touches_no_gradient_and_gives_the_weights_of_backward(period):
    model, other = TwoHeads(), TwoHeads()
    weigher, harmonizer = (Harmonizer(GH(), shared=m.trunk, scope="all", period=period) for m in (model, other))
    for seed in range(3):
        losses = model(batch(seed=seed))
        weights = weigher.weigh(losses).weights.float()
        assert all(parameter.grad is None for parameter in model.parameters())
        (weights[0] * losses["alignment"] + weights[1] * losses["task"]).backward()
        harmonizer.backward(other(batch(seed=seed)))
        torch.testing.assert_close(weights.double(), harmonizer.report.weights, rtol=1e-5, atol=0)
        for p, q in zip(model.trunk.parameters(), other.trunk.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
        model.zero_grad()
        other.zero_grad()


def test_what_would_be_wrong_without_a_word_is_refused():
    model = TwoHeads()
    with pytest.raises(ValueError, match=r"weights of shape \[2\]"):
        Harmonizer(lambda gramian: torch.ones(3), shared=model.trunk).backward(model(batch()))
    model.trunk[0].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(RuntimeError, match="post-accumulate-grad hook"):
        Harmonizer(GH(), shared=model.trunk).backward(model(batch()))
    words = nn.Embedding(5, 2, sparse=True)
    losses = {"task": words(torch.arange(3)).sum(), "alignment": -words(torch.arange(2)).sum()}
    with pytest.raises(ValueError, match="sparse"):
        Harmonizer(GH(), shared=words).backward(losses)


@pytest.mark.parametrize("options", [{}, {"period": 2}, {"scope": "all"}, {"loss_weights": {"task": 2.0}}], ids=str)
def test_nothing_is_read_on_the_host_or_made_on_another_device(options):
    with torch.device("meta"):  # It has no values to read, and mixes with no other device.
        trunk, head, x = nn.Linear(6, 4), nn.Linear(4, 1), torch.randn(3, 6)
    harmonizer = Harmonizer(GHPlusPlus(guard=True), shared=trunk, **options)
    for _ in range(2):
        features = trunk(x)
        harmonizer.backward({"task": head(features).sum(), "alignment": -features.pow(2).sum()})
    assert trunk.weight.grad.is_meta


def test_an_overflow_does_not_turn_harmonization_off_for_the_rest_of_the_period():
    model = TwoHeads()
    harmonizer = Harmonizer(GH(), shared=model.trunk, period=2)
    held = harmonizer.backward(model(batch(seed=1))).weights
    harmonizer.backward(model(batch(seed=2)))
    overflow = harmonizer.backward({task: loss * 1e38 * 1e4 for task, loss in model(batch(seed=3)).items()})
    assert overflow.weights.tolist() == [1.0, 1.0]
    model.zero_grad()
    losses = model(batch(seed=4))
    by_task = {task: gradients(loss, model)["trunk.0.weight"] for task, loss in losses.items()}
    harmonizer.backward(losses)
    expected = held[0].float() * by_task["alignment"] + held[1].float() * by_task["task"]
    torch.testing.assert_close(model.trunk[0].weight.grad, expected, rtol=1e-4, atol=1e-6)


def test_what_a_weighting_or_a_state_cannot_do_is_said_before_training():
    model = TwoHeads()
    with pytest.raises(ValueError, match="two tasks"):
        Harmonizer(GHPlusPlusOfficial(), shared=model.trunk, tasks=("a", "b", "c"))
    with pytest.raises(ValueError, match="two tasks"):
        Harmonizer("gh++:official:length=sum", shared=model.trunk, tasks=("a", "b", "c"))
    state = Harmonizer(GH(), shared=model.trunk, tasks=("task", "alignment")).state_dict()
    with pytest.raises(ValueError, match="tasks"):
        Harmonizer(GH(), shared=model.trunk).load_state_dict(state)
    for foreign in ({}, {"a": 1}, {"tasks": ["task", "alignment"]}):
        with pytest.raises(ValueError, match=r"no state of a Harmonizer: it lacks .*weighting"):
            Harmonizer(GH(), shared=model.trunk).load_state_dict(foreign)


def test_a_grad_scaler_itself_is_taken_for_its_scale():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    reports = []
    for scale in (scaler, scaler.scale):
        model = TwoHeads()
        reports.append(Harmonizer(GH(), shared=model.trunk).backward(model(batch()), scale=scale))
    assert torch.equal(reports[0].gramian, reports[1].gramian)
    assert torch.equal(reports[0].weights, reports[1].weights)


@pytest.mark.parametrize("call", ["backward", "weigh"])
def test_a_call_that_is_not_as_documented_is_explained(call):
    model = TwoHeads()
    harmonizer = Harmonizer(GH(), shared=model.trunk)
    losses = model(batch())
    with pytest.raises(TypeError, match=r'as in \{"alignment": ..., "task": ...\}, got list'):
        getattr(harmonizer, call)(list(losses.values()))
    with pytest.raises(TypeError, match=r"scale takes a GradScaler, or a function that scales a loss, got 1024.0"):
        getattr(harmonizer, call)(losses, scale=1024.0)
    sum(losses.values()).backward()
    with pytest.raises(RuntimeError, match=r"run backward before: leave loss.backward\(\) out") as found:
        getattr(harmonizer, call)(losses)
    assert "retain_graph" not in str(found.value)


def test_a_harmonizer_says_what_it_is():
    harmonizer = Harmonizer("gh++:adaptive", shared=nn.Linear(3, 2), period=4)
    said = "shared=2 parameters (8 weights), tasks=['alignment', 'task'], scope='shared', period=4"
    assert repr(harmonizer) == f"Harmonizer(gh++:adaptive, {said})"


@pytest.mark.parametrize("inside", ["head", "discriminator"])
def test_a_head_in_what_is_shared_is_warned_of_once(inside):
    model = TwoHeads()
    task = {"head": "task", "discriminator": "alignment"}[inside]
    harmonizer = Harmonizer(GH(), shared=[model.trunk, getattr(model, inside)])
    with pytest.warns(UserWarning, match=rf"2 of the 6 shared parameters are reached by loss '{task}' alone"):
        harmonizer.backward(model(batch()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        harmonizer.backward(model(batch()))
        Harmonizer(GH(), shared=model, scope="all").backward(model(batch()))  # which weighs heads too


def test_a_part_of_the_trunk_that_one_loss_alone_reaches_is_no_head():
    model = TwoHeads()
    features = model.trunk[:2](batch())
    losses = {"alignment": features.square().mean(), "task": model.head(model.trunk[2:](features)).mean()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Harmonizer(GH(), shared=model.trunk).backward(losses)
