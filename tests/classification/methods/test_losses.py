"""What the methods are made of: conditioning, entropy, bridges, the balance of DWL, the safe refinement of SSRT."""

import math

import pytest
import torch
from torch import nn

from gh_downstream.classification.backbones import Backbone
from gh_downstream.classification.methods.base import AdversarialOptions, HeadLayers
from gh_downstream.classification.methods.dwl import Balance
from gh_downstream.classification.methods.entropy import certainty, entropy, weighted_domain_loss
from gh_downstream.classification.methods.ssrt import CollapseGuard, _perturbed, refinement_loss
from tests.classification import tiny_domains as tiny

# ---- CDAN


def test_conditioning_is_the_outer_product():
    method, _ = tiny.build("cdan")
    features, predictions = torch.randn(4, 5).double(), torch.rand(4, 3).double()
    conditioned = method.condition(features, predictions)
    assert conditioned.shape == (4, 15)
    for k in range(4):
        # The same product in any order of the entries: its inner products are those of features times predictions.
        assert torch.equal(conditioned[k], torch.outer(predictions[k], features[k]).flatten())


def test_random_projections_have_the_inner_products_of_the_outer_product_on_average():
    method, _ = tiny.build("cdan", random_features=40_000, hidden=2)
    features, predictions = torch.randn(2, 5).double(), torch.rand(2, 3).double()
    projected = method.condition(features, predictions)
    assert projected.shape == (2, 40_000)
    expected = (features[0] @ features[1]) * (predictions[0] @ predictions[1])
    spread = features.norm(dim=1).prod() * predictions.norm(dim=1).prod()
    assert abs(projected[0] @ projected[1] - expected) < 0.05 * spread
    assert {"feature_projection", "prediction_projection"} <= method.state_dict().keys()


# ---- entropy


def test_entropy_and_the_weights_it_gives():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(entropy(logits), torch.tensor([math.log(4), 0.0]))
    torch.testing.assert_close(certainty(logits, 1.0), torch.tensor([0.25, 1.0]))


def test_the_gradient_of_the_weights_is_reversed():
    logits = torch.randn(3, 4).double().requires_grad_()
    (plain,) = torch.autograd.grad((-entropy(logits)).exp().sum(), logits)
    (ours,) = torch.autograd.grad(certainty(logits, 0.3).sum(), logits)
    torch.testing.assert_close(ours, -0.3 * plain)


def test_the_weighted_domain_loss_does_not_depend_on_the_scale_of_the_weights():
    z, w = torch.randn(2, 6).double(), torch.rand(2, 6).double() + 1
    loss = weighted_domain_loss(z[0], z[1], w[0], w[1])
    torch.testing.assert_close(loss, weighted_domain_loss(z[0], z[1], 3 * w[0], 5 * w[1]))
    zeros = torch.zeros(6).double()
    assert weighted_domain_loss(zeros, zeros, w[0], w[1]).item() == pytest.approx(math.log(2))


# ---- GVB, MCD


def test_gvb_classifies_without_what_the_bridge_takes_out():
    method, batch = tiny.build("gvb")
    features = method.backbone(batch["target_images"])
    found = method.classify(batch["target_images"])
    torch.testing.assert_close(found, method.classifier(features) - method.bridge(features))
    assert not torch.allclose(found, method.classifier(features))


def test_mcd_classifies_with_both_classifiers():
    method, batch = tiny.build("mcd")
    features = method.backbone(batch["target_images"])
    found = method.classify(batch["target_images"])
    torch.testing.assert_close(found, method.classifier(features) + method.classifier2(features))


# ---- DWL


def test_the_balance_is_a_share_that_begins_in_the_middle_and_rises_as_the_domains_part():
    torch.manual_seed(0)
    balance, values = Balance(decay=0.5), []
    assert balance.value.item() == 0.5
    source, target, logits = torch.randn(30, 4), torch.randn(30, 4), torch.randn(30, 3)
    for shift in (0.0, 0.5, 1.0, 1.5, 2.0, 1.0, 0.0, 0.0):
        balance.update(source, target + shift, logits)
        values.append(balance.value.item())
        assert 0.0 <= values[-1] <= 1.0
    assert values[0] == 0.5
    # The classes stay as separated as they are: what changes is the distance of the domains.
    assert values[1:5] == sorted(values[1:5])
    assert values[4] > 0.6 > 0.4 > values[7]


def test_the_balance_is_equation_8_and_rises_with_the_separation_of_the_classes():
    balance, found = Balance(), []
    for apart, separated in ((0.2, 0.1), (0.2, 0.5), (0.2, 0.9), (0.6, 0.9), (1.0, 1.0)):
        balance.average, balance.least, balance.largest = torch.tensor([[1 + apart, 2 * separated], [1, 0], [2, 2]])
        found.append(balance.value.item())
    assert found == pytest.approx([0.2 / 1.1, 0.2 / 0.7, 0.2 / 0.3, 0.6 / 0.7, 1.0])


def test_what_the_balance_measures_on_a_step():
    target = torch.tensor([[0.0, 1.0], [0.0, 3.0], [4.0, 0.0], [6.0, 0.0]])
    logits = torch.tensor([[5.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 5.0], [0.0, 0.0, 5.0]])
    balance = Balance(decay=0.75)
    balance.update(target + torch.tensor([3.0, 4.0]), target, logits)
    # Centers (0, 2) and (5, 0), each at a distance of 1 from its two images, around the mean (2.5, 1).
    first = torch.tensor([25.0, 4 * (2.5**2 + 1) / 4])
    torch.testing.assert_close(balance.average, first)
    balance.update(target, target, logits)
    torch.testing.assert_close(balance.average, torch.tensor([0.75 * 25.0, first[1].item()]))
    torch.testing.assert_close(balance.least, balance.average)
    torch.testing.assert_close(balance.largest, first)


def test_the_balance_survives_features_that_never_change():
    balance = Balance()
    for _ in range(2):
        balance.update(torch.ones(4, 2), torch.ones(4, 2), torch.zeros(4, 3))
    assert balance.value.item() == 0.5


# ---- SSRT


class Doubling(nn.Module):
    """A stand-in for the blocks of a transformer that keeps what they get."""

    def __init__(self, depth):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity() for _ in range(depth)])

    def forward(self, tokens):
        self.got = []
        for block in self.blocks:
            tokens = block(tokens)
            self.got.append(tokens)
        return tokens


def test_the_perturbation_appends_the_moved_tokens_of_the_target_and_leaves_no_trace():
    trunk, tokens = Doubling(3), torch.randn(7, 4, 2, requires_grad=True)
    with _perturbed(trunk, 1, 3, 0.25):
        out = trunk(tokens)
    target = tokens[4:]
    assert torch.equal(trunk.got[0], tokens)
    assert torch.equal(out[:7], tokens)
    torch.testing.assert_close(out[7:], 0.75 * target + 0.25 * target[[2, 1, 0]])
    # Equation 4: the difference passes no gradient, so all of it is that of the image's own tokens.
    (gradient,) = torch.autograd.grad(out[7:].sum(), tokens)
    assert torch.equal(gradient, torch.cat([torch.zeros(4, 4, 2), torch.ones(3, 4, 2)]))
    assert torch.equal(trunk(tokens), tokens)
    with pytest.raises(KeyError), _perturbed(trunk, 1, 3, 0.25):
        raise KeyError
    assert torch.equal(trunk(tokens), tokens)


def test_a_vision_transformer_gets_them_too():
    trunk = tiny.vit_backbone().trunk
    images = torch.randn(5, 1, 8, 8)
    with _perturbed(trunk, 2, 2, 0.0):
        features = trunk(images)
    assert features.shape == (7, 8)
    torch.testing.assert_close(features[5:], features[3:5])
    with _perturbed(trunk, 2, 2, 0.5):
        moved = trunk(images)
    torch.testing.assert_close(moved[:5], features[:5])
    assert (moved[5:] - features[5:]).abs().amin(dim=1).all()
    assert trunk(images).shape == (5, 8)


def test_the_refinement_loss_is_a_divergence_of_confident_images():
    torch.manual_seed(0)
    logits, moved = 3 * torch.randn(8, 4).double(), 3 * torch.randn(8, 4).double()
    p, q = logits.softmax(dim=1), moved.softmax(dim=1)
    directions = []
    for model, other in ((p, q), (q, p)):
        sure = model.amax(dim=1) > 0.7
        assert 0 < sure.sum() < 8
        directions.append(((model * (model / other).log()).sum(dim=1)[sure]).mean().item())
    found = {round(refinement_loss(logits, moved, 0.7).item(), 9) for _ in range(40)}
    assert found == {round(value, 9) for value in directions}
    assert min(found) > 0
    assert refinement_loss(logits, logits, 0.0).item() == pytest.approx(0.0, abs=1e-12)
    assert refinement_loss(logits, moved, 1.0).item() == 0.0


INTERVAL = 4


def logits_of(classes):
    """Logits whose most likely classes are so many different ones."""
    return nn.functional.one_hot(torch.arange(8) % classes, 8).double()


def guard_after(*diversities):
    """A guard of intervals whose steps have so many classes, and whether it gave up at the beginning of each."""
    guard, given_up = CollapseGuard(INTERVAL, 2), []
    for diversity in diversities:
        for classes in diversity:
            if guard.at_boundary():
                given_up.append(guard.begin_interval())
            guard.note(logits_of(classes))
    given_up.append(guard.begin_interval())
    return guard, given_up


def test_the_refinement_rises_over_an_interval_and_stays():
    guard, rises = CollapseGuard(INTERVAL, 2), []
    for _ in range(6):
        rises.append(guard.rise())
        guard.note(logits_of(3))
    assert rises == pytest.approx([math.sin(min(k / 4, 1) * math.pi / 2) for k in range(6)])


@pytest.mark.parametrize("second", [(6, 6, 6, 6), (5, 5, 5, 5), (8, 8, 8, 8), (6, 5, 6, 5)])
def test_nothing_is_given_up_without_a_drop_by_more_than_one_class(second):
    assert guard_after((6, 6, 6, 6), second)[1] == [False, False, False]


@pytest.mark.parametrize(
    "second",
    [
        (4, 4, 4, 4),  # between the intervals
        (8, 8, 6, 6),  # between the halves
        (6, 8, 6, 6),  # between the quarters
    ],
)
def test_a_drop_by_more_than_one_class_is_given_up(second):
    guard, given_up = guard_after((6, 6, 6, 6), second)
    assert given_up == [False, False, True]
    assert guard.rise() == 0.0
    assert guard.counters.tolist() == [8, 8, INTERVAL, 8]


def test_a_first_interval_is_compared_with_itself_alone():
    assert guard_after((1, 1, 1, 1))[1] == [False, False]
    assert guard_after((6, 6, 2, 2))[1] == [False, True]


def test_giving_up_again_soon_doubles_the_time_of_the_rise():
    guard, given_up = guard_after((6, 6, 6, 6), (4, 4, 4, 4), (4, 4, 4, 4))
    assert given_up == [False, False, True, True]
    assert guard.counters.tolist() == [12, 12, 2 * INTERVAL, 12]
    guard.note(logits_of(6))
    assert guard.rise() == pytest.approx(math.sin(math.pi / 16))


def test_giving_up_long_after_does_not():
    guard, given_up = guard_after((6, 6, 6, 6), (4, 4, 4, 4), (6, 6, 6, 6), (6, 6, 6, 6), (4, 4, 4, 4))
    assert given_up == [False, False, True, False, False, True]
    assert guard.counters.tolist() == [20, 20, INTERVAL, 20]


@pytest.mark.parametrize("collapsed", [True, False])
def test_the_weights_that_an_interval_began_with_come_back_bit_for_bit(collapsed):
    torch.manual_seed(0)
    method = tiny.method_of("ssrt", tiny.vit_backbone(), 6, {"interval": INTERVAL, "levels": 1, "hidden": 8})
    batch = (torch.randn(8, 1, 8, 8), torch.arange(8) % 6, torch.randn(8, 1, 8, 8), 0.5)

    def state():
        parts = ("backbone", "classifier", "discriminator")
        return {name: x.clone() for name, x in method.state_dict().items() if name.startswith(parts)}

    def interval(diversity):
        """Steps after which the guard has seen so many classes."""
        for _ in range(INTERVAL):
            method(*batch)
            with torch.no_grad():  # as an optimizer would
                for parameter in method.parameters():
                    parameter.add_(0.01 * torch.randn_like(parameter) * parameter.requires_grad)
        method.guard.diversity.fill_(diversity)

    interval(6)
    began = state()
    interval(4 if collapsed else 5)
    ended = state()
    method.eval()  # so that the forward pass which gives the weights up does not move the running statistics
    method(*batch)
    expected, other = (began, ended) if collapsed else (ended, began)
    assert all(torch.equal(value, expected[name]) for name, value in state().items())
    assert not any(torch.equal(value, other[name]) for name, value in state().items())
    assert method.guard.counters[3] == (2 * INTERVAL if collapsed else 0)


# ---- options


@pytest.mark.parametrize(
    ("baseline", "options", "message"),
    [
        ("mcd", {"generator_steps": 0}, "generator_steps must be at least 1, got 0"),
        ("dwl", {"generator_steps": 0}, "generator_steps must be at least 1, got 0"),
        ("ssrt", {"layers": [3]}, r"method_options.ssrt.layers are blocks from 0 to 2, got \[3\]"),
        ("ssrt", {"layers": []}, "layers are blocks"),
        ("ssrt", {"interval": 7, "levels": 3}, "an interval of 7 steps cannot be halved 3 times"),
    ],
)
def test_options_out_of_range_are_named(baseline, options, message):
    backbone = tiny.vit_backbone() if baseline == "ssrt" else tiny.linear_backbone()
    with pytest.raises(ValueError, match=message):
        tiny.method_of(baseline, backbone, 3, options)


def test_ssrt_needs_a_transformer():
    with pytest.raises(ValueError, match="choose one as backbone, or vit-digits"):
        tiny.method_of("ssrt", Backbone(nn.Flatten(), 4), 3, {})


# ---- networks


def kinds(network):
    return [type(layer).__name__ for layer in network]


def test_discriminators_and_heads_have_the_layers_that_published_ones_have():
    of_cdan = tiny.method_of("cdan", tiny.linear_backbone(), 3, {"hidden": 8, "dropout": 0.5}).discriminator
    assert kinds(of_cdan) == [*("Linear", "ReLU", "Dropout") * 2, "Linear"]
    of_dann = tiny.method_of("dann", tiny.linear_backbone(), 3, {"hidden": 8, "batch_norm": True}).discriminator
    assert kinds(of_dann) == [*("Linear", "BatchNorm1d", "ReLU") * 2, "Linear"]
    of_ssrt = tiny.method_of("ssrt", tiny.vit_backbone(), 6, {"hidden": 8, "dropout": 0.5})
    assert kinds(of_ssrt.discriminator) == kinds(of_ssrt.classifier) == ["Linear", "ReLU", "Dropout", "Linear"]
    heads = HeadLayers(hidden=8, hidden_layers=2, dropout=0.5, batch_norm=True)
    of_mcd = tiny.method_of("mcd", tiny.linear_backbone(), 3, {"heads": heads})
    assert kinds(of_mcd.classifier2) == [*("Dropout", "Linear", "BatchNorm1d", "ReLU") * 2, "Linear"]
    assert of_mcd.classifier2[-1].out_features == 3


@pytest.mark.parametrize("baseline", ["dann", "cdan", "gvb", "mcd", "dwl"])
def test_batch_normalization_takes_each_domain_alone_where_it_is_asked_to(baseline):
    torch.manual_seed(0)
    backbone = Backbone(nn.Sequential(nn.Flatten(), nn.Linear(4, 5)), 5, bottleneck=5)
    method = tiny.method_of(baseline, backbone, 3, {} if baseline == "mcd" else {"hidden": 8})
    images = torch.randn(6, 1, 2, 2), torch.randn(5, 1, 2, 2) + 1
    batch = {"source_images": images[0], "source_labels": torch.arange(6) % 3, "target_images": images[1]}
    batch |= {"progress": 0.5} | ({"phase": "generator"} if method.phases else {})
    seen = []
    backbone.register_forward_hook(lambda module, given, features: seen.append(features))
    method(**batch)
    method.separate_domains = True
    method(**batch)
    joint, source, target = seen
    assert (len(joint), len(source), len(target)) == (11, 6, 5)
    assert not torch.allclose(joint, torch.cat([source, target]))


@pytest.mark.parametrize("baseline", ["dann", "cdan", "gvb"])
def test_the_task_runs_backward_through_the_source_alone_where_the_domains_are_separate(baseline):
    method = tiny.method_of(baseline, tiny.linear_backbone(), 3, {"hidden": 8})
    method.separate_domains, run = True, []

    def follow(module, given, features):
        features.register_hook(lambda gradient: run.append(len(gradient)))

    method.backbone.register_forward_hook(follow)
    losses = method(torch.randn(6, 1, 2, 2), torch.arange(6) % 3, torch.randn(5, 1, 2, 2), 0.5)
    losses["task"]["loss_cls"].backward(retain_graph=True)
    assert run == [6]
    sum(losses["alignment"].values()).backward()
    assert sorted(run) == [5, 6, 6]


@pytest.mark.parametrize("baseline", ["dann", "cdan", "gvb"])
@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 3)])
def test_the_alignment_reaches_a_share_of_the_source(baseline, share, count):
    torch.manual_seed(0)
    method = tiny.method_of(baseline, tiny.linear_backbone(), 3, {"hidden": 8})
    batch = torch.randn(6, 1, 2, 2), torch.arange(6) % 3, torch.randn(5, 1, 2, 2), 0.5
    method.separate_domains, run = True, []

    def follow(module, given, features):
        features.register_hook(lambda gradient: run.append(len(gradient)))

    whole = method(*batch)
    method.source_share = share
    handle = method.backbone.register_forward_hook(follow)
    losses = method(*batch)
    handle.remove()
    torch.testing.assert_close(losses, whole)
    sum(losses["alignment"].values()).backward(retain_graph=True)
    assert sorted(run) == [*([count] if count else []), 5]
    run.clear()
    found = [
        torch.autograd.grad(x["task"]["loss_cls"], [*method.backbone.parameters(), *method.classifier.parameters()])
        for x in (losses, whole)
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("separate", [False, True])
def test_a_discriminator_with_batch_normalization_always_sees_both_domains(separate):
    method = tiny.method_of("dann", tiny.linear_backbone(), 3, {"hidden": 8, "batch_norm": True})
    method.separate_domains = separate
    seen = []
    method.discriminator.register_forward_hook(lambda module, given, logits: seen.append(len(logits)))
    method(torch.randn(6, 1, 2, 2), torch.arange(6) % 3, torch.randn(5, 1, 2, 2), 0.5)
    assert seen == [11]


def test_the_ramp_of_published_code_counts_steps():
    options = AdversarialOptions(trade_off=0.1, gamma=20.0)  # of 20 000 steps, 20 000 / 1000
    for step in (0, 500, 1000, 5000):
        assert options.strength(step / 20_000) == pytest.approx(0.1 * (2 / (1 + math.exp(-step / 1000)) - 1))
