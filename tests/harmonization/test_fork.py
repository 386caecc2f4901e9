import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gh_downstream import GH, GHPlusPlus, Sum, fork
from gh_downstream.harmonization import Report, parse_weighting
from tests.harmonization.networks import TwoHeads, batch


def branch_gradients(model, features):
    """Gradients of the two losses at the features, in the order alignment, task."""
    losses = model.losses(features, features)
    return [torch.autograd.grad(losses[t], features, retain_graph=True)[0] for t in ("alignment", "task")]


def in_a_row(features):
    """The tensors of a nesting, in order."""
    if isinstance(features, torch.Tensor):
        return [features]
    return [x for part in (features.values() if isinstance(features, dict) else features) for x in in_a_row(part)]


@pytest.mark.parametrize("weighting", [Sum(), GH(), GHPlusPlus(), GHPlusPlus("adaptive")], ids=repr)
def test_one_backward_harmonizes_the_gradients_where_they_meet(weighting):
    model, plain = TwoHeads(), TwoHeads()
    features = plain.trunk(batch())
    rows = torch.stack([g.flatten().double() for g in branch_gradients(plain, features)])
    weights = weighting(rows @ rows.T)
    features.backward((weights @ rows).float().reshape(features.shape))
    reports: list[Report] = []
    alignment, task = fork(model.trunk(batch()), weighting, on_report=reports.append)
    losses = model.losses(task, alignment)
    (losses["task"] + losses["alignment"]).backward()
    torch.testing.assert_close(reports[0].weights, weights, rtol=1e-5, atol=0)
    for p, q in zip(model.trunk.parameters(), plain.trunk.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_the_branches_get_their_ordinary_gradients():
    model, plain = TwoHeads(), TwoHeads()
    alignment, task = fork(model.trunk(batch()), GH())
    sum(model.losses(task, alignment).values()).backward()
    sum(plain(batch()).values()).backward()
    for part in ("head", "discriminator"):
        for p, q in zip(getattr(model, part).parameters(), getattr(plain, part).parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)


def test_the_forward_pass_is_the_identity_for_a_tensor_a_list_and_a_dictionary():
    a, b = torch.randn(2, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    for first, second in (fork(a), fork(a * 1)):
        assert torch.equal(first, a)
        assert torch.equal(second, a)
        assert first is not second
    for copy in fork([a, b], tasks=("x", "y", "z")):
        assert isinstance(copy, list)
        assert torch.equal(copy[1], b)
    for copy in fork({"p2": a, "p3": b}):
        assert list(copy) == ["p2", "p3"]
        assert torch.equal(copy["p2"], a)


def test_any_nesting_comes_back_for_each_task():
    a, b, c = (torch.randn(2, requires_grad=True) for _ in range(3))
    nested = ({"p2": a, "p3": [b]}, (c, {}), [])
    for first, (second, rest), nothing in fork(nested, tasks=("x", "y", "z")):
        assert list(first) == ["p2", "p3"]
        assert isinstance(first["p3"], list)
        assert isinstance(rest, dict)
        assert nothing == []
        for copy, tensor in ((first["p2"], a), (first["p3"][0], b), (second, c)):
            assert copy is not tensor
            assert torch.equal(copy, tensor)


def test_a_nesting_is_harmonized_as_its_tensors_in_a_row():
    x = {name: torch.randn(5, requires_grad=True) for name in "abc"}
    sides = [torch.randn(3, 5) for _ in ("alignment", "task")]
    found = []
    for features in (list(x.values()), ({"a": x["a"], "b": [x["b"]]}, (x["c"],))):
        reports: list[Report] = []
        branches = fork(features, GH(), on_report=reports.append)
        # The loss of each task is linear, so that its gradient at the features is what it is multiplied with.
        loss = sum(
            (row * tensor).sum()
            for rows, branch in zip(sides, branches, strict=True)
            for row, tensor in zip(rows, in_a_row(branch), strict=True)
        )
        found.append((reports, torch.autograd.grad(loss, list(x.values()))))
    (flat, gradients), (nested, others) = found
    assert torch.equal(flat[0].gramian, nested[0].gramian)
    assert all(torch.equal(*pair) for pair in zip(gradients, others, strict=True))


def test_several_tensors_are_measured_jointly():
    x, y = torch.tensor([1.0, 0.0], requires_grad=True), torch.tensor([0.0], requires_grad=True)
    reports: list[Report] = []
    (x1, y1), (x2, y2) = fork([x, y], GH(), on_report=reports.append)
    (3 * x1[0] + 2 * y1[0] - x2[0] + y2[0]).backward()
    assert reports[0].gramian.tolist() == [[13.0, -1.0], [-1.0, 2.0]]
    weights = GH()(reports[0].gramian)
    expected = weights[0] * torch.tensor([3.0, 0.0]) + weights[1] * torch.tensor([-1.0, 0.0])
    torch.testing.assert_close(x.grad, expected.float())


def test_a_level_that_only_one_branch_uses_and_a_branch_that_sends_nothing():
    x, y, z = (torch.ones(2, requires_grad=True) for _ in range(3))
    alignment, task = fork({"x": x, "y": y, "z": z}, GH())
    (alignment["x"].sum() - 2 * task["x"].sum() + task["y"].sum()).backward()
    weights = GH()(torch.tensor([[2.0, -4.0], [-4.0, 10.0]], dtype=torch.float64)).float()
    torch.testing.assert_close(x.grad, (weights[0] - 2 * weights[1]).expand(2))
    torch.testing.assert_close(y.grad, weights[1].expand(2))
    assert z.grad is None
    x.grad = None
    _, task = fork(x, GH())
    task.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_outputs_that_share_memory_do_not_lose_a_branch():
    x = torch.ones(2, requires_grad=True)
    for branches in (fork(x, Sum()), fork(x * 1, Sum()), fork(x.view(2), Sum())):
        x.grad = None
        (branches[0] * 2 + branches[1] * 3).sum().backward()
        assert x.grad.tolist() == [5.0, 5.0]


def test_an_in_place_change_of_one_branch_is_an_error_and_not_a_silent_change_of_the_other():
    first, _ = fork(torch.ones(2, requires_grad=True) * 1)
    with pytest.raises(RuntimeError, match="inplace"):
        first.relu_()


def test_integers_and_tensors_without_gradient_pass_through():
    index, frozen, x = torch.arange(3), torch.randn(2), torch.ones(2, requires_grad=True)
    first, second = fork([index, frozen, x])
    assert torch.equal(first[0], index)
    (first[2] * second[1]).sum().backward()
    torch.testing.assert_close(x.grad, frozen)


@pytest.mark.parametrize("reentrant", [True, False])
def test_any_checkpointing_works(reentrant):
    model, plain = TwoHeads(), TwoHeads()
    alignment, task = fork(checkpoint(model.trunk, batch().requires_grad_(), use_reentrant=reentrant), GH())
    sum(model.losses(task, alignment).values()).backward()
    alignment, task = fork(plain.trunk(batch()), GH())
    sum(plain.losses(task, alignment).values()).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad)


def test_a_compiled_trunk_works():
    model, plain = TwoHeads(), TwoHeads()
    alignment, task = fork(torch.compile(model.trunk, backend="aot_eager")(batch()), GH())
    sum(model.losses(task, alignment).values()).backward()
    alignment, task = fork(plain.trunk(batch()), GH())
    sum(plain.losses(task, alignment).values()).backward()
    for p, q in zip(model.trunk.parameters(), plain.trunk.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_at_a_large_loss_scale(dtype):
    # At a scale of 65536 / 2 the squares overflow float16; the weights must not.
    x = nn.Parameter(torch.tensor([0.5, 1.0], dtype=dtype))
    reports: list[Report] = []
    alignment, task = fork(x, GH(), on_report=reports.append)
    scale = 2.0**13
    loss = (alignment * torch.tensor([3.0, 1.0], dtype=dtype)).sum() - (
        task * torch.tensor([1.0, 0.0], dtype=dtype)
    ).sum()
    (loss * scale).backward()
    assert reports[0].weights.tolist() == pytest.approx([1.3, 4.0])
    expected = torch.tensor([1.3 * 3 - 4.0, 1.3]) * scale
    torch.testing.assert_close(x.grad.float(), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("weighting", ["gh++:adaptive", GHPlusPlus("adaptive")], ids=["word", "object"])
def test_it_takes_the_word_of_a_weighting(weighting):
    x = torch.ones(2, requires_grad=True)
    reports: list[Report] = []
    alignment, task = fork(x, weighting, on_report=reports.append)
    (3 * alignment[0] + alignment[1] - task[0]).backward()
    gramian = torch.tensor([[10.0, -3.0], [-3.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(reports[0].weights.double(), GHPlusPlus("adaptive")(gramian))


def test_an_overflow_is_passed_on():
    x = torch.ones(2, requires_grad=True)
    alignment, task = fork(x, GH())
    (alignment.sum() * float("inf") - task.sum()).backward()
    assert not x.grad.isfinite().any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(2), GH(), ("task",)), ValueError, "two or more"),
        ((3.0,), TypeError, "float"),
        (([torch.ones(2), None],), TypeError, "NoneType"),
        (({"p2": (torch.ones(2), "p3")},), TypeError, "str"),
        ((torch.ones(2), GH), TypeError, "the class GH"),
        ((torch.ones(2), 3), TypeError, "got 3"),
        ((torch.ones(2), "gh--"), ValueError, "'gh--'"),
        ((torch.ones(2), GHPlusPlus(0.3), ("a", "b", "c")), ValueError, "GH\\+\\+ of 3 tasks"),
    ],
)
def test_a_mistake_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        fork(*arguments)


def test_a_frozen_tensor_and_a_repeated_one_do_not_count_in_the_measurement():
    x, frozen = torch.tensor([1.0, 1.0], requires_grad=True), torch.ones(2)
    for features, inner in (([x, frozen], -1.0), ([x, x], -4.0)):
        reports: list[Report] = []
        x.grad = None
        (a0, a1), (t0, t1) = fork(features, GH(), on_report=reports.append)
        (a0[0] + a1[0] - t0[0] - t1[0]).backward()
        # Of the frozen tensor no gradient goes on; of the repeated one both add up.
        assert reports[0].gramian[0, 1].item() == inner
        assert x.grad.abs().max() < 1e-6  # The two gradients are opposite: GH leaves nothing of them.


def test_the_word_of_a_weighting_with_a_state_is_refused_and_its_object_keeps_it():
    pytest.importorskip("torchjd")
    features = torch.ones(2, 3, requires_grad=True)
    for word in ("gradvac", "gradvac:length=sum"):
        with pytest.raises(ValueError, match=r"remembers.*parse_weighting\('gradvac"):
            fork(features, word)
    weighting = parse_weighting("gradvac")
    reports = []
    for _ in range(3):
        a, b = fork(features, weighting, on_report=reports.append)
        (a.sum() - 2 * (b * torch.tensor([1.0, 0.5, -1.0])).sum()).backward()
    assert not torch.equal(reports[0].weights, reports[2].weights)
