"""Weightings that look at the losses."""

import inspect
import math

import pytest
import torch

from gh_downstream import Harmonizer, fork
from gh_downstream.harmonization import HarmonizationConfig, as_torchjd, parse_weighting
from gh_downstream.harmonization.scalarizations import SCALARIZATIONS
from gh_downstream.integrations.open_clip_train import HarmonizedClipLoss
from tests.harmonization.networks import ByLosses, TwoHeads, batch

scalarization = pytest.importorskip("torchjd.scalarization", reason="needs pip install 'gh_downstream[torchjd]'")

EYE = torch.eye(2, dtype=torch.float64)
NAMES = sorted(SCALARIZATIONS)


def losses(first, second):
    return {"alignment": first, "task": second}


def weigh(weighting, *pairs):
    """The weights at the last of several pairs of losses."""
    return [weighting(EYE, losses(*pair)) for pair in pairs][-1]


def gradient(scalarizer, values):
    values = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(scalarizer(values), values)[0]


@pytest.mark.parametrize(
    ("word", "scalarizer"),
    [
        ("geometricmean", scalarization.GeometricMean()),
        ("stch:mu=0.5", scalarization.STCH(0.5, weights=torch.ones(2, dtype=torch.float64))),
        ("famo", scalarization.FAMO(2)),
        ("uw", scalarization.UW(2)),
        ("imtll", scalarization.IMTLL(2)),
        ("dwa", scalarization.DWA()),
    ],
)
def test_the_update_is_the_gradient_of_the_scalarization(word, scalarizer):
    model, reference = TwoHeads(), TwoHeads()
    Harmonizer(word, shared=model.trunk, scope="all", model=model).backward(model(batch()))
    values = reference(batch())
    scalarizer(torch.stack([values["alignment"], values["task"]])).backward()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_famo_raises_the_weight_of_the_loss_that_fell_less():
    """As TorchJD's own does that is told the losses of the next step."""
    steps = [(1.0, 1.0), (0.9, 0.5), (0.85, 0.3)]
    theirs = scalarization.FAMO(2).double()
    for k, pair in enumerate(steps):
        if k:
            theirs.update(torch.tensor(pair, dtype=torch.float64))
        expected = gradient(theirs, pair)
    found = weigh(parse_weighting("famo"), *steps)
    torch.testing.assert_close(found, expected)
    assert found[0] * 0.85 > found[1] * 0.3  # the shares of the logarithms
    assert found.sum() == pytest.approx(1)


def test_dwa_raises_the_weight_of_the_loss_that_fell_less_from_epoch_to_epoch():
    weighting = parse_weighting("dwa:epoch=2:temperature=1")
    steps = [(1.5, 2.5), (0.5, 1.5), (0.9, 1.2), (0.9, 0.8)]
    for pair in steps:
        torch.testing.assert_close(weigh(weighting, pair), torch.ones(2, dtype=torch.float64))
    expected = 2 * torch.tensor([0.9 / 1.0, 1.0 / 2.0], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(weigh(weighting, (3.0, 5.0)), expected)


@pytest.mark.parametrize("word", ["uw", "imtll"])
def test_a_learned_scale_falls_for_the_loss_that_is_larger(word):
    weighting = parse_weighting(f"{word}:lr=0.1")
    first = weigh(weighting, (5.0, 0.1))
    assert first[0] == first[1]
    large, small = weigh(weighting, *[(5.0, 0.1)] * 20)
    assert large < first[0] < small


def test_rlw_is_another_one_at_each_step():
    weighting = parse_weighting("rlw")
    first, second = weigh(weighting, (1.0, 1.0)), weigh(weighting, (1.0, 1.0))
    assert first.sum() == pytest.approx(1)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "rlw"])
def test_equal_losses_make_the_sum_where_steps_are_compared(name):
    weights = weigh(parse_weighting(f"{name}:length=tasks"), (0.7, 0.7))
    torch.testing.assert_close(weights, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", ["", ":max_weight=2", ":length=sum"])
def test_a_word_is_its_repr(name, options):
    assert repr(parse_weighting(f"{name}{options}")) == f"{name}{options}"


@pytest.mark.parametrize("name", NAMES)
def test_it_resumes_with_what_it_remembers(tmp_path, name):
    def run(harmonizer, model, seeds):
        torch.manual_seed(seeds[0])
        return [harmonizer.backward(model(batch(seed=seed))).weights for seed in seeds]

    model, word = TwoHeads(), f"{name}:epoch=2" if name == "dwa" else f"{name}:length=sum"
    through = Harmonizer(word, shared=model.trunk)
    run(through, model, range(5))
    whole = run(through, model, range(5, 10))
    first = Harmonizer(word, shared=model.trunk)
    run(first, model, range(5))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Harmonizer(word, shared=model.trunk)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for a, b in zip(run(second, model, range(5, 10)), whole, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_a_scale_of_the_backward_pass_changes_the_gradient_alone(name):
    weights, gradients = [], []
    for scale in (None, lambda loss: 1024 * loss):
        model = TwoHeads()
        harmonizer = Harmonizer(name, shared=model.trunk)
        for seed in range(3):
            model.zero_grad()
            torch.manual_seed(seed)
            weights.append(harmonizer.backward(model(batch(seed=seed)), scale=scale).weights)
        gradients.append(model.trunk[0].weight.grad)
    for plain, scaled in zip(weights[:3], weights[3:], strict=True):
        torch.testing.assert_close(plain, scaled)
    torch.testing.assert_close(1024 * gradients[0], gradients[1])


def test_an_overflow_is_neither_hidden_nor_remembered():
    model = TwoHeads()
    harmonizer, undisturbed = (Harmonizer("famo", shared=model.trunk) for _ in range(2))
    for seed in range(3):
        expected = undisturbed.backward(model(batch(seed=seed))).weights
        if seed == 2:
            with_overflow = model(batch(seed=7))
            report = harmonizer.backward({**with_overflow, "task": with_overflow["task"] * math.inf})
            assert report.weights.tolist() == [1, 1]
        found = harmonizer.backward(model(batch(seed=seed))).weights
    assert torch.equal(found, expected)


@pytest.mark.parametrize("word", ["famo", "geometricmean"])
@pytest.mark.parametrize("value", [0.0, -0.5])
def test_a_loss_that_has_no_logarithm_is_named_and_nothing_is_left(word, value):
    model = TwoHeads()
    found = model(batch())
    with pytest.raises(ValueError, match=f"{word} takes the logarithm.*'alignment' is {value:g}"):
        Harmonizer(word, shared=model.trunk).backward({**found, "alignment": found["alignment"] * 0 + value})
    assert all(parameter.grad is None for parameter in model.parameters())


def test_where_losses_are_not_seen_they_are_refused():
    said = "looks at the losses, which are not seen here"
    features = torch.ones(2, requires_grad=True)
    for refuse in (
        lambda: fork(features, "famo"),
        lambda: fork(features, parse_weighting("uw:length=sum")),
        lambda: as_torchjd(parse_weighting("stch")),
        lambda: HarmonizationConfig(weighting="dwa", measure="features"),
        lambda: HarmonizedClipLoss(torch.nn.Identity(), torch.nn.Identity(), weighting="rlw"),
    ):
        with pytest.raises(ValueError, match=said):
            refuse()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf, True, "banana", -1], ids=str)
def test_every_argument_is_checked(name, value):
    own = SCALARIZATIONS[name][1]
    theirs = inspect.signature(getattr(scalarization, SCALARIZATIONS[name][0])).parameters
    for argument in {"max_weight", *own, *({"temperature"} & theirs.keys())}:
        with pytest.raises(ValueError, match=f"{argument} must be"):
            parse_weighting(f"{name}:{argument}={value}")


@pytest.mark.parametrize("word", ["famo:shape=3", "stch:weights=1", "rlw:lr=1", "dwa:epoch=1.5", "uw:guard"])
def test_other_arguments_are_refused(word):
    with pytest.raises(ValueError, match=r"has no argument|whole number"):
        parse_weighting(word)


def test_a_weighting_of_ones_own_is_called_with_the_losses():
    model = TwoHeads()
    found = model(batch())
    report = Harmonizer(ByLosses(), shared=model.trunk, loss_weights={"task": 1000.0}).backward(found)
    expected = torch.stack([found["alignment"], 1000 * found["task"]]).detach().double()
    torch.testing.assert_close(report.weights, expected)
