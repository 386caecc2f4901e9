"""The losses by rows: in chunks, and shared by two processes, they are those of the whole matrix."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from gh_downstream.adaptation import mmd, rows
from gh_downstream.retrieval.objectives import (
    PositivePairs,
    SideFeatures,
    contrastive_loss,
    positive_pairs,
    sigmoid_loss,
    triplet_loss,
)
from gh_downstream.retrieval.objectives.alignment import Distillation
from tests.largest import largest_tensor

LOSSES = ("contrastive", "sigmoid", "triplet", "distillation", "mmd")


def inputs(count=14, width=8):
    """Features of images and of more texts, scale, bias, and ids: copies, shared texts, some without a partner."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (count, count + 6))
    leaves = [normalize(x, dim=1), normalize(y, dim=1), torch.tensor(2.0).double(), torch.tensor(-3.0).double()]
    groups = torch.stack([torch.arange(count) // 2 * 2, torch.full((count,), -1)], dim=1)
    groups[[1, count - 2], 1] = 999
    text_groups = torch.arange(count + 6) % (count + 3)
    text_groups[[3, -1]] = 999
    return [leaf.requires_grad_() for leaf in leaves], PositivePairs(groups, text_groups)


def found(name, leaves, positives, distributed=False):
    """A loss, and its gradients with respect to all inputs."""
    images, texts, scale, bias = leaves
    options = {"distributed": distributed}
    start = SideFeatures(images, None, texts[: len(images)].detach(), texts.detach(), None, distributed)
    loss = {
        "contrastive": lambda: contrastive_loss(images, texts, positives, scale, **options),
        "sigmoid": lambda: sigmoid_loss(images, texts, positives, scale, bias, **options),
        "triplet": lambda: triplet_loss(images, texts, positives, 0.3, **options),
        "distillation": lambda: Distillation(scale)(start),
        "mmd": lambda: mmd(images, texts, **options),
    }[name]()
    return [loss.detach(), *torch.autograd.grad(2 * loss, leaves, materialize_grads=True)]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("entries", [1, 50])
def test_chunks_have_the_value_and_the_gradients_of_the_whole(monkeypatch, name, entries):
    leaves, positives = inputs()
    whole = found(name, leaves, positive_pairs(positives.groups, positives.text_groups))
    monkeypatch.setattr(rows, "ENTRIES", entries)
    assert_same(found(name, leaves, positives), whole)
    assert_same(found(name, leaves, positive_pairs(positives.groups, positives.text_groups)), whole)


@pytest.mark.parametrize("name", LOSSES)
def test_the_memory_does_not_grow_with_the_square_of_the_batch(monkeypatch, name):
    monkeypatch.setattr(rows, "ENTRIES", 2**16)
    leaves, positives = inputs(1000)
    with largest_tensor() as largest:
        found(name, leaves, positives)
    assert largest() <= 2**16


def test_what_is_frozen_gets_no_gradient_and_evaluation_no_graph(monkeypatch):
    leaves, positives = inputs()
    leaves[0].requires_grad_(False)
    whole = contrastive_loss(*leaves[:2], positives, leaves[2])
    monkeypatch.setattr(rows, "ENTRIES", 50)
    loss = contrastive_loss(*leaves[:2], positives, leaves[2])
    loss.backward()
    assert leaves[0].grad is None
    torch.testing.assert_close(leaves[1].grad, torch.autograd.grad(whole, leaves[1])[0])
    with torch.no_grad():
        assert not contrastive_loss(*leaves[:2], positives, leaves[2]).requires_grad


def test_a_second_derivative_of_chunks_is_refused(monkeypatch):
    leaves, positives = inputs()
    monkeypatch.setattr(rows, "ENTRIES", 50)
    loss = contrastive_loss(*leaves[:2], positives, leaves[2])
    with pytest.raises(RuntimeError, match="differentiated once only: do without create_graph=True"):
        torch.autograd.grad(loss, leaves[2], create_graph=True)


def shared(rank, entries):
    rows.ENTRIES = entries
    leaves, positives = inputs(15)  # rows that two processes cannot share equally
    results = {name: found(name, leaves, positives, distributed=True) for name in LOSSES}
    with largest_tensor() as largest:
        found("contrastive", *inputs(200), distributed=True)
    return results | {"largest": largest()}


@pytest.mark.slow
@pytest.mark.parametrize("entries", [60, 2**22])
def test_the_mean_over_two_processes_is_the_whole(ranks, entries):
    results = ranks(shared, entries)
    leaves, positives = inputs(15)
    for name in LOSSES:
        assert_same(
            [(a + b) / 2 for a, b in zip(*(result[name] for result in results), strict=True)],
            found(name, leaves, positives),
        )
    assert all(result["largest"] <= max(entries, 103 * 206) for result in results)  # half of the matrix


def test_pairs_in_a_diagonal_are_the_loss_of_clip():
    (images, texts, scale, _), _ = inputs()
    images, texts = images[:8], texts[:8]
    logits, labels = scale.exp() * images @ texts.T, torch.arange(8)
    ours = contrastive_loss(images, texts, PositivePairs(labels, labels), scale)
    torch.testing.assert_close(ours, (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2)
