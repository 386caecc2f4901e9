"""A step of each method on the real trainer, against gradients and weights written out by hand from the formulas."""

import copy
import functools
import itertools
import math

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch.nn.functional import cross_entropy, logsigmoid

from gh_downstream.training import derive_seed
from tests.classification import tiny_domains as tiny
from tests.kill import lines_of

LR = 0.1
STRENGTH = 2 / (1 + math.exp(-10 * 0.3)) - 1  # of gradient reversal, at the progress of the batch


@pytest.fixture(autouse=True)
def fresh_accelerate():
    AcceleratorState._reset_state(True)
    torch.set_num_threads(1)
    yield
    AcceleratorState._reset_state(True)


# ---- weights, from the Gramian [m, m] with the alignment first


def plain_sum(G):
    return torch.ones(len(G)).double()


def gh(G):
    return 1 - (G.clamp(max=0) / G.diagonal()[:, None]).sum(dim=1)


def power(symmetric, exponent):
    values, vectors = torch.linalg.eigh(symmetric)
    return vectors * values**exponent @ vectors.T


def gh_plus_plus(G):
    n = G.diagonal().sqrt()
    C = G / n / n[:, None]
    if (C >= 0).all():
        return plain_sum(G)
    root = power(C.clamp(min=0), 0.5)
    A = root @ power(root @ C @ root, -0.5) @ root
    return A.T @ n / n


WEIGHTINGS = {"sum": plain_sum, "gh": gh, "gh++": gh_plus_plus}


# ---- losses: for each side pairs of a loss and the factor that gradient reversal gives it over what lies before


def entropy(logits):
    p = logits.softmax(dim=1)
    return -(p * p.log()).sum(dim=1)


def binary(of_source, of_target, w=None, v=None):
    """Cross-entropy of source (1) and target (0), each domain with half of the weight; w and v weigh the images."""
    w, v = (torch.ones_like(x) if y is None else y for x, y in ((of_source, w), (of_target, v)))
    on_source = -(w * logsigmoid(of_source)).sum() / w.sum().detach()
    on_target = -(v * logsigmoid(-of_target)).sum() / v.sum().detach()
    return (on_source + on_target) / 2


def halves(model, batch):
    features = model.backbone(torch.cat([batch["source_images"], batch["target_images"]]))
    return features[:6], features[6:]


def apart(z1, z2):
    return (z1.softmax(dim=1) - z2.softmax(dim=1)).abs().mean()


def imbalance(z):
    return -torch.log(z.softmax(dim=1).mean(dim=0) + 1e-6).mean()


def source_only(model, batch, phase):
    logits = model.classifier(model.backbone(batch["source_images"]))
    return {"task": [(cross_entropy(logits, batch["source_labels"]), 1)]}


def dann(model, batch, phase):
    s, t = halves(model, batch)
    return {
        "alignment": [(binary(model.discriminator(s)[:, 0], model.discriminator(t)[:, 0]), -0.5 * STRENGTH)],
        "task": [(cross_entropy(model.classifier(s), batch["source_labels"]), 1)],
    }


def cdan(model, batch, phase):
    of_domain, weights = [], []
    for f in halves(model, batch):
        z = model.classifier(f)
        g = z.softmax(dim=1).detach()
        if model.random_features:
            seen = (f @ model.feature_projection) * (g @ model.prediction_projection) / math.sqrt(model.random_features)
        else:
            seen = torch.stack([torch.outer(gi, fi).flatten() for gi, fi in zip(g, f, strict=True)])
        of_domain.append(model.discriminator(seen)[:, 0])
        weights.append(1 + torch.exp(-entropy(z)) if model.options.entropy else None)
    task = cross_entropy(model.classifier(halves(model, batch)[0]), batch["source_labels"])
    return {"alignment": [(binary(*of_domain, *weights), -STRENGTH)], "task": [(task, 1)]}


def gvb(model, batch, phase):
    f = torch.cat(halves(model, batch))
    z = model.classifier(f) - model.bridge(f)
    D = model.discriminator
    hidden = D.layers[2](D.layers[0](z.softmax(dim=1)).relu()).relu()
    d = (D.logit(hidden) - D.bridge(hidden))[:, 0]
    w = torch.exp(-entropy(z))
    return {
        "domain": [(binary(d[:6], d[6:], w[:6], w[6:]), -STRENGTH)],
        "generator_bridge": [(0.5 * model.bridge(f).abs().mean(), 1)],
        "discriminator_bridge": [(0.3 * D.bridge(hidden).abs().mean(), -STRENGTH)],
        "classification": [(cross_entropy(z[:6], batch["source_labels"]), 1)],
    }


def gvb_two_sides(model, batch, phase):
    groups = gvb(model, batch, phase)
    task = groups.pop("classification")
    return {"alignment": [loss for losses in groups.values() for loss in losses], "task": task}


def mcd(model, batch, phase):
    s, t = halves(model, batch)
    heads = model.classifier, model.classifier2
    on_source = sum(cross_entropy(head(s), batch["source_labels"]) for head in heads)
    sides = {"task": [(on_source + 0.01 * sum(imbalance(head(t)) for head in heads), 1)]}
    if phase != "source":
        sign = -1 if phase == "classifiers" else 1
        sides["alignment"] = [(sign * 2.0 * apart(*(head(t) for head in heads)), 1)]
    return sides


def dwl(model, batch, phase):
    s, t = halves(model, batch)
    heads = model.classifier, model.classifier1, model.classifier2
    domains = binary(model.discriminator(s)[:, 0], model.discriminator(t)[:, 0])
    labels, z = batch["source_labels"], [head(t) for head in heads]
    if phase == "source":
        return {"task": [(cross_entropy(heads[0](s), labels), 1)]}
    if phase == "discriminator":
        return {"alignment": [(domains, 1)]}
    if phase == "classifiers":
        return {"task": [(sum(cross_entropy(head(s), labels) for head in heads) - apart(z[1], z[2]), 1)]}
    if phase == "generator":
        T = 0.3 / (0.3 + 1 - 0.6)
        together = sum(apart(x, y) for x, y in itertools.combinations(z, 2))
        return {"alignment": [(T * 0.2 * domains, -1)], "task": [((1 - T) * together, 1)]}
    unsure = entropy(z[0])
    certain = ((torch.exp(-unsure) - 1 / 3) / (1 - 1 / 3)).detach()
    return {"task": [(0.1 * (certain * -z[0].softmax(dim=1).amax(dim=1).log() + (1 - certain) * unsure).mean(), 1)]}


def ssrt(model, batch, phase):
    trunk = model.backbone.trunk
    set_seed(derive_seed(3, "model", 0, 0))
    assert model.layers == (1,)
    torch.randint(1, ())
    first_is_model = bool(torch.rand(()) < 0.5)
    x = trunk._pos_embed(trunk.patch_embed(torch.cat([batch["source_images"], batch["target_images"]])))
    x = trunk.blocks[0](x)
    t = x[6:]
    x = torch.cat([x, t + 0.3 * (t.flip(0) - t).detach()])
    f = model.backbone.bottleneck(trunk.norm(trunk.blocks[2](trunk.blocks[1](x)))[:, 0])
    z = model.classifier(f)
    D = model.discriminator(f)[:, 0]
    p, q = (z[6:11], z[11:]) if first_is_model else (z[11:], z[6:11])
    p, q = p.softmax(dim=1), q.softmax(dim=1)
    sure = p.amax(dim=1) > 0.4
    refinement = ((p * (p / q).log()).sum(dim=1) * sure).sum() / sure.sum()
    return {
        "alignment": [(2 * binary(D[:6], D[6:11]), -0.1 * STRENGTH), (0.2 * refinement, 1)],
        "task": [(cross_entropy(z[:6], batch["source_labels"]), 1)],
    }


# ---- the step


def update(model, batch, sides, weighting, trained, shared, scope, phase, trade_offs=()):
    """Update the weights once by hand; the Gramian where something was harmonized, without the trade-offs given."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad and n.split(".")[0] in trained}
    is_shared = {n: n.split(".")[0] in shared for n in parameters}
    gradients = []
    by_task = sides(model, batch, phase)
    for losses in by_task.values():
        total = {n: torch.zeros_like(p) for n, p in parameters.items()}
        for loss, factor in losses:
            found = torch.autograd.grad(loss, parameters.values(), retain_graph=True, allow_unused=True)
            for n, g in zip(parameters, found, strict=True):
                if g is not None:
                    total[n] += (factor if is_shared[n] else 1) * g
        gradients.append(total)
    flat = torch.stack([torch.cat([g[n].flatten() for n in g if is_shared[n]]) for g in gradients]) if shared else None
    if weighting is not None:
        flat = flat / torch.tensor([dict(trade_offs).get(task, 1.0) for task in by_task], dtype=torch.float64)[:, None]
    gramian = None if weighting is None else flat @ flat.T
    tau = torch.ones(len(gradients)) if gramian is None else weighting(gramian)
    with torch.no_grad():
        for n, p in parameters.items():
            weighted = is_shared[n] or scope == "all"
            p -= LR * sum((w if weighted else 1) * g[n] for w, g in zip(tau, gradients, strict=True))
    return gramian


MCD_PHASES = [
    ("source", {"backbone", "classifier", "classifier2"}),
    ("classifiers", {"classifier", "classifier2"}),
    *[("generator", {"backbone"})] * 2,
]
DWL_PHASES = [
    ("source", {"backbone", "classifier"}),
    ("discriminator", {"discriminator"}),
    ("classifiers", {"classifier", "classifier1", "classifier2"}),
    *[("generator", {"backbone"})] * 2,
    ("target", {"backbone", "classifier"}),
]
GROUPS = {
    "domain": ["loss_domain"],
    "generator_bridge": ["loss_generator_bridge"],
    "discriminator_bridge": ["loss_discriminator_bridge"],
    "classification": ["loss_cls"],
}
BRIDGES = {"generator_bridge": 0.5, "discriminator_bridge": 0.3, "hidden": 7}
# Baseline, its options, losses by hand, what is shared, settings of the harmonization, phases.
CASES = {
    "dann": ("dann", {"trade_off": 0.5, "hidden": 7}, dann, {"backbone"}, {}, None),
    "cdan+e": ("cdan", {"hidden": 7}, cdan, {"backbone", "classifier"}, {}, None),
    "cdan+e, all": ("cdan", {"hidden": 7}, cdan, {"backbone", "classifier"}, {"scope": "all"}, None),
    "cdan": ("cdan", {"entropy": False, "hidden": 7}, cdan, {"backbone"}, {}, None),
    "cdan, random": ("cdan", {"entropy": False, "random_features": 4, "hidden": 7}, cdan, {"backbone"}, {}, None),
    "gvb": ("gvb", BRIDGES, gvb_two_sides, {"backbone", "classifier", "bridge"}, {}, None),
    "gvb, four": ("gvb", BRIDGES, gvb, {"backbone", "classifier", "bridge"}, {"tasks": GROUPS}, None),
    "mcd": ("mcd", {"trade_off": 2.0, "generator_steps": 2}, mcd, {"backbone"}, {}, MCD_PHASES),
    "dwl": ("dwl", {"generator_steps": 2, "hidden": 7}, dwl, {"backbone"}, {}, DWL_PHASES),
    "ssrt": ("ssrt", {"layers": [1], "interval": None, "hidden": 7}, ssrt, {"backbone"}, {}, None),
}


def prepared(case, seed):
    baseline, options = CASES[case][:2]
    model, batch = tiny.build(baseline, seed, **options)
    if baseline == "dwl":  # As if it had seen some steps: 0.3 and 0.6 of the way from the least to the largest value.
        model.balance.least.copy_(torch.tensor([1.0, 0.0]))
        model.balance.average.copy_(torch.tensor([1.3, 1.2], dtype=torch.float64))
        model.balance.largest.copy_(torch.tensor([2.0, 2.0]))
    return model, batch


def step_by_hand(case, seed, weighting, trade_offs=()):
    """The model after a step, and the Gramians of its harmonized updates."""
    sides, shared, settings, phases = CASES[case][2:]
    model, batch = prepared(case, seed)
    scope, gramians = settings.get("scope", "shared"), []
    for phase, trained in phases or [(None, {name for name, _ in model.named_children()})]:
        harmonized = phase in (None, "generator")
        over = shared if harmonized else set()
        gramian = update(
            model, batch, sides, weighting if harmonized else None, trained, over, scope, phase, trade_offs
        )
        gramians += [gramian] if harmonized else []
    return model, gramians


@functools.cache
def conflicting_seed(case):
    """A seed of weights and images for which the sides oppose each other, so that there is something to weigh."""
    for seed in range(100):
        if all((G < 0).any() for G in step_by_hand(case, seed, plain_sum)[1]):
            return seed
    raise AssertionError("no seed has a conflict")


@pytest.mark.parametrize("method", WEIGHTINGS)
@pytest.mark.parametrize("case", CASES)
def test_a_step_equals_the_one_by_hand(case, method, tmp_path):
    seed = conflicting_seed(case)
    expected, gramians = step_by_hand(case, seed, WEIGHTINGS[method])
    model, batch = prepared(case, seed)
    before = copy.deepcopy(model.state_dict())
    harmonization = {"weighting": method, **CASES[case][4]}
    tiny.train(tiny.config(tmp_path, harmonization=harmonization, optimizer={"lr": LR}), model, tiny.repeated(batch))
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-9, atol=1e-12)
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, child in model.named_children() if any(True for _ in child.parameters())}
    line = lines_of(tmp_path, "total")[0]
    measured = sorted(value for key, value in line.items() if key.startswith("gh/norm/"))
    assert measured == pytest.approx(sorted(gramians[-1].diagonal().sqrt().tolist()), rel=1e-6)


BALANCE = 0.3 / (0.3 + 1 - 0.6)
TRADE_OFFS = {
    "dann": {"alignment": 0.5 * STRENGTH},
    "cdan+e": {"alignment": STRENGTH},
    "cdan": {"alignment": STRENGTH},
    "cdan, random": {"alignment": STRENGTH},
    "gvb": {"alignment": STRENGTH},  # that of the bridge, 0.5, is less, and stays in proportion
    "gvb, four": {"domain": STRENGTH, "discriminator_bridge": STRENGTH, "generator_bridge": 0.5},
    "mcd": {"alignment": 2.0},
    "dwl": {"alignment": 0.2 * BALANCE, "task": 1 - BALANCE},
    "ssrt": {"alignment": 0.2},  # that of the refinement; that of the reversal is less
}


@pytest.mark.parametrize("method", ["gh", "gh++"])
@pytest.mark.parametrize("case", TRADE_OFFS)
def test_trade_offs_count_after_the_weighing(case, method, tmp_path):
    seed = conflicting_seed(case)
    expected, gramians = step_by_hand(case, seed, WEIGHTINGS[method], TRADE_OFFS[case])
    model, batch = prepared(case, seed)
    model.trade_offs_after = True
    harmonization = {"weighting": method, **CASES[case][4]}
    tiny.train(tiny.config(tmp_path, harmonization=harmonization, optimizer={"lr": LR}), model, tiny.repeated(batch))
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-9, atol=1e-12)
    line = lines_of(tmp_path, "total")[0]
    measured = sorted(value for key, value in line.items() if key.startswith("gh/norm/"))
    assert measured == pytest.approx(sorted(gramians[-1].diagonal().sqrt().tolist()), rel=1e-6)


@pytest.mark.parametrize(
    "harmonization",
    [{"weighting": "sum"}, {"weighting": "gh", "scope": "all"}, {"weighting": "gh", "shared": ["backbone"]}],
)
def test_where_trade_offs_count_is_not_asked(harmonization, tmp_path):
    trained = []
    for after in (False, True):
        model, batch = tiny.build("cdan", hidden=7)
        model.trade_offs_after = after
        tiny.train(tiny.config(tmp_path / f"{after}", harmonization=harmonization), model, tiny.repeated(batch))
        trained.append(model.state_dict())
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


@pytest.mark.parametrize("weighting", ["cagrad", "mgda", "imtlg"])
def test_weightings_that_look_at_directions_do_not_undo_the_ramp(weighting, tmp_path):
    weights = {}
    for after, progress in itertools.product((True, False), (0.001, 1.0)):
        model, batch = tiny.build("cdan", conflicting_seed("cdan"), entropy=False, hidden=7)
        model.trade_offs_after, batch["progress"] = after, progress
        model.discriminator[-1].weight.data *= 100  # so that the alignment is about as large as the task
        output = tmp_path / f"{after}{progress}"
        tiny.train(tiny.config(output, harmonization={"weighting": weighting}), model, tiny.repeated(batch))
        line = lines_of(output, "total")[0]
        weights[after, progress] = [line["gh/weight/alignment"], line["gh/weight/task"]]
    assert weights[True, 0.001] == pytest.approx(weights[True, 1.0], rel=1e-4)
    assert weights[False, 0.001] != pytest.approx(weights[False, 1.0], rel=0.5)


def test_a_ramp_of_zero_stops_the_alignment_and_leaves_the_discriminator_and_the_task(tmp_path):
    model, batch = tiny.build("dann", hidden=7)
    expected = copy.deepcopy(model)
    batch["progress"] = 0.0
    model.trade_offs_after = True
    tiny.train(tiny.config(tmp_path, harmonization={"weighting": "cagrad"}), model, tiny.repeated(batch))
    assert not torch.equal(model.discriminator[0].weight, expected.discriminator[0].weight)
    step = [
        (after - before).flatten()
        for after, before in zip(model.backbone.parameters(), expected.backbone.parameters(), strict=True)
    ]
    loss = cross_entropy(expected.classify(batch["source_images"]), batch["source_labels"])
    gradient = [g.flatten() for g in torch.autograd.grad(loss, list(expected.backbone.parameters()))]
    cosine = torch.nn.functional.cosine_similarity(torch.cat(step), torch.cat(gradient), dim=0)
    assert cosine.item() == pytest.approx(-1.0)


def test_bridges_that_pass_one_reversal_cannot_have_different_ramps(tmp_path):
    model, batch = tiny.build("gvb", hidden=7)
    model.trade_offs_after = True
    tasks = {"alignment": ["loss_domain"], "bridges": ["loss_*_bridge"], "task": []}
    settings = tiny.config(tmp_path, harmonization={"weighting": "gh", "tasks": tasks})
    with pytest.raises(ValueError, match=r"pass one gradient reversal.*trade_offs=before"):
        tiny.train(settings, model, tiny.repeated(batch))


def test_source_only_takes_the_gradient_of_the_source(tmp_path):
    model, batch = tiny.build("source_only")
    expected = copy.deepcopy(model)
    update(expected, batch, source_only, None, {"backbone", "classifier"}, set(), "shared", None)
    del batch["target_images"]
    tiny.train(tiny.config(tmp_path, optimizer={"lr": LR}), model, tiny.repeated(batch))
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", ["mcd", "dwl"])
def test_a_phase_moves_exactly_what_it_trains(case, tmp_path):
    model, batch = prepared(case, conflicting_seed(case))
    seen = []

    def note(module, arguments, keywords):
        seen.append((keywords["phase"], {name: p.detach().clone() for name, p in module.named_parameters()}))

    model.register_forward_pre_hook(note, with_kwargs=True)
    tiny.train(tiny.config(tmp_path, harmonization={"weighting": "gh"}), model, tiny.repeated(batch))
    seen.append((None, dict(model.named_parameters())))
    phases = CASES[case][5]
    assert [phase for phase, _ in seen[:-1]] == [phase for phase, _ in phases]
    for (phase, trained), (_, before), (_, after) in zip(phases, seen[:-1], seen[1:], strict=True):
        moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        assert moved == trained, phase
