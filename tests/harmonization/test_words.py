"""A weighting and its options as one word."""

import pytest
import torch

from gh_downstream import GH, GHPlusPlus, GHPlusPlusOfficial, Harmonizer, Sum
from gh_downstream.harmonization import Rescaled, parse_weighting
from gh_downstream.harmonization.weightings import Fixed
from tests.harmonization.networks import TwoHeads, batch

OWN = {
    "sum": Sum(),
    "fixed:weight=2": Fixed(2),
    "fixed:weight=0.3": Fixed(0.3),
    "gh": GH(),
    "gh:max_weight=10": GH(max_weight=10),
    "gh++": GHPlusPlus(),
    "gh++:0": GHPlusPlus(0),
    "gh++:0.3": GHPlusPlus(0.3),
    "gh++:adaptive": GHPlusPlus("adaptive"),
    "gh++:guard": GHPlusPlus(guard=True),
    "gh++:0.3:guard": GHPlusPlus(0.3, guard=True),
    "gh++:adaptive:guard": GHPlusPlus("adaptive", guard=True),
    "gh++:s_min=0.01": GHPlusPlus(s_min=0.01),
    "gh++:official": GHPlusPlusOfficial(),
    "gh++:official:0.3": GHPlusPlusOfficial(0.3),
    "gh++:official:max_weight=2.5": GHPlusPlusOfficial(max_weight=2.5),
}
TORCHJD = ("pcgrad", "pcd:tau=0.5", "upgrad", "cagrad:c=0.4", "fairgrad:alpha=2", "mgda:max_weight=3")


@pytest.mark.parametrize("word", OWN)
def test_a_word_is_the_weighting_and_its_repr(word):
    assert parse_weighting(word) == OWN[word]
    assert repr(OWN[word]) == word


@pytest.mark.parametrize("word", TORCHJD)
def test_words_of_torchjd_are_their_repr_and_take_its_arguments(word):
    pytest.importorskip("torchjd")
    assert repr(parse_weighting(word)) == word
    gramian = torch.tensor([[4.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(parse_weighting(word)(gramian), parse_weighting(repr(parse_weighting(word)))(gramian))


def test_an_argument_of_torchjd_changes_the_weights():
    pytest.importorskip("torchjd")
    gramian = torch.tensor([[4.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert not torch.equal(parse_weighting("cagrad:c=0.1")(gramian), parse_weighting("cagrad:c=0.9")(gramian))


@pytest.mark.parametrize("word", ["gh:length=sum", "gh++:adaptive:length=sum"])
def test_a_length_rescales_and_stays_in_the_word(word):
    weighting = parse_weighting(word)
    assert isinstance(weighting, Rescaled)
    assert repr(weighting) == word


def test_a_fixed_weight_is_that_of_the_first_task_however_long_the_gradients_are():
    for gramian in (torch.eye(3), 1e-6 * torch.ones(3, 3)):
        assert parse_weighting("fixed:weight=0.3")(gramian.double()).tolist() == [0.3, 1, 1]
    for word in ("fixed:weight=-1", "fixed:weight=x", "fixed:2"):
        with pytest.raises(ValueError, match="weight"):
            parse_weighting(word)


def test_the_task_is_primary_in_pcd():
    """At a right angle the primary gradient keeps its length, and the other gets its small share."""
    pytest.importorskip("torchjd")
    alignment, task = parse_weighting("pcd")(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)))
    assert task == pytest.approx(1, abs=1e-3)
    assert 0 < alignment < 0.1


def test_a_cap_beside_the_word_holds_where_the_word_has_none():
    assert parse_weighting("gh", 7.0) == GH(max_weight=7.0)
    assert parse_weighting("gh:max_weight=2", 7.0) == GH(max_weight=2)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("ghpp", ["'ghpp'", "sum, gh, gh++", "gh++:official", "pcgrad"]),
        ("gh+++", ["'gh+++'", "sum, gh, gh++"]),
        ("none", ["'none'", "sum, gh, gh++"]),
        ("gh:0.3", ["'gh:0.3'", "max_weight", "0.3"]),
        ("gh:guard", ["guard"]),
        ("gh:max_weight=0.5", ["max_weight", "at least 1"]),
        ("pcgrad:guard", ["pcgrad", "'guard'"]),
        ("cagrad:d=0.4", ["cagrad", "'d'", "c"]),
        ("cagrad:c=abc", ["c must be a number at least 0", "'abc'"]),
        ("fairgrad:alpha=true", ["alpha must be a number at least 0", "True"]),
        ("gh++:1.5", ["1.5", "[0, 1]"]),
        ("gh++:offical", ["'offical'", "official"]),
        ("gh++:official:guard", ["published"]),
        ("gh++:official:adaptive", ["official", "a number in [0, 1]"]),
        ("gh++:c=0.4", ["s_min", "c"]),
        ("gh++:length=longer", ["length", "'longer'"]),
        ("gh++:true", ["a lambda in [0, 1]", "'true'"]),
        ("gh++:lam=true", ["lam", "True"]),
        ("gh++:adaptive:0.3", ["twice", "'adaptive'", "'0.3'"]),
        ("gh++:0.3:0.7", ["twice", "'0.3'", "'0.7'"]),
        ("gh:max_weight=2:max_weight=3", ["twice", "'max_weight=2'", "'max_weight=3'"]),
        ("gh++:guard=banana", ["guard", "true, false", "'banana'"]),
        ("gh++:official=banana", ["official", "true, false", "'banana'"]),
        ("gh:max_weight=true", ["max_weight", "True"]),
        ("gh:max_weight=abc", ["max_weight", "at least 1", "'abc'"]),
        ("gh++:s_min=abc", ["s_min", "(0, 1)", "'abc'"]),
        ("gh++:official:true", ["published", "'true'"]),
    ],
)
def test_what_there_is_not_is_said_in_one_line(word, named):
    with pytest.raises(ValueError, match="weighting") as caught:
        parse_weighting(word)
    assert "\n" not in str(caught.value)
    assert repr(word) in str(caught.value)
    assert all(part in str(caught.value) for part in named)


def test_a_harmonizer_takes_the_word():
    model = TwoHeads()
    by_word = Harmonizer("gh++:adaptive", shared=model.trunk).backward(model(batch()))
    model.zero_grad()
    by_object = Harmonizer(GHPlusPlus("adaptive"), shared=model.trunk).backward(model(batch()))
    assert torch.equal(by_word.weights, by_object.weights)


@pytest.mark.parametrize("wrong", [GH, GHPlusPlus, 3, None])
def test_what_is_no_weighting_is_refused_at_construction(wrong):
    with pytest.raises(TypeError, match="'gh\\+\\+'"):
        Harmonizer(wrong, shared=TwoHeads().trunk)


def test_an_unknown_word_is_refused_at_construction():
    with pytest.raises(ValueError, match="'ghh'"):
        Harmonizer("ghh", shared=TwoHeads().trunk)
