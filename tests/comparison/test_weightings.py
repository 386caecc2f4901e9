"""How weightings are written on the command line of a comparison."""

import pytest
import torch
import yaml

from gh_downstream.comparison.weightings import lambda_of, lambda_weightings, weighting_overrides
from gh_downstream.harmonization import GH, GHPlusPlus, GHPlusPlusOfficial, HarmonizationConfig, Sum, parse_weighting
from gh_downstream.training import load_config


def built(weighting, folder, length="own"):
    """The weighting that the overrides make of a configuration with settings of its own."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"weighting": "gh++", "lam": 0.9, "guard": True, "max_weight": 7.0}))
    overrides = [override.removeprefix("harmonization.") for override in weighting_overrides(weighting, length)]
    config = load_config(HarmonizationConfig, path, overrides)
    return parse_weighting(config.method, config.lam, config.guard, config.max_weight, config.length)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("sum", Sum(max_weight=7.0)),
        ("gh", GH(max_weight=7.0)),
        ("gh++", GHPlusPlus(0.5, max_weight=7.0)),
        ("gh++:0.3", GHPlusPlus(0.3, max_weight=7.0)),
        ("gh++:0", GHPlusPlus(0, max_weight=7.0)),
        ("gh++:adaptive", GHPlusPlus("adaptive", max_weight=7.0)),
        ("gh++:guard", GHPlusPlus(0.5, guard=True, max_weight=7.0)),
        ("gh++:0.3:guard", GHPlusPlus(0.3, guard=True, max_weight=7.0)),
        ("gh++:official", GHPlusPlusOfficial(0.5, max_weight=7.0)),
        ("gh++:official:0.3", GHPlusPlusOfficial(0.3, max_weight=7.0)),
    ],
)
def test_a_weighting_is_what_its_name_says_and_keeps_the_cap(weighting, expected, tmp_path):
    assert built(weighting, tmp_path) == expected


def test_a_weighting_of_torchjd_has_no_cap_and_steps_that_compare(tmp_path):
    pytest.importorskip("torchjd")
    gramian = torch.tensor([[4.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(built("pcgrad", tmp_path)(gramian), GH()(gramian))
    torch.testing.assert_close(built("mean", tmp_path, "tasks")(gramian), torch.ones(2).double())


@pytest.mark.parametrize(
    ("weighting", "words"),
    [
        ("ghpp", ["'ghpp'", "sum, gh, gh++", "gh++:official", "pcgrad"]),
        ("none", ["'none'", "sum, gh, gh++"]),
        ("gh:0.3", ["gh has no options"]),
        ("pcgrad:guard", ["pcgrad has no options"]),
        ("gh++:1.5", ["'1.5'", "[0, 1]"]),
        ("gh++:offical", ["'offical'", "official"]),
        ("gh++:official:guard", ["published"]),
        ("gh++:official:adaptive", ["published"]),
    ],
)
def test_what_there_is_not_is_said_in_one_line(weighting, words):
    with pytest.raises(ValueError, match="weighting") as caught:
        weighting_overrides(weighting)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words)


def test_lambdas_have_both_ends():
    assert lambda_weightings("0:1:0.5") == ["sum", "gh++:0", "gh++:0.5", "gh++:1"]
    tenths = lambda_weightings("0:1:0.1")
    assert len(tenths) == 12
    assert tenths[4] == "gh++:0.3"
    assert lambda_weightings("0.2,0.7") == ["sum", "gh++:0.2", "gh++:0.7"]
    assert [lambda_of(name) for name in ("gh++:0.3", "gh++", "gh++:adaptive", "gh", "sum")] == [
        0.3,
        0.5,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("lambdas", ["0:2:0.5", "0:1", "a", "0:1:0", "1:0:0.1", "", "-0.5,0"])
def test_lambdas_that_are_none_are_refused(lambdas):
    with pytest.raises(ValueError, match="expected START:STOP:STEP"):
        lambda_weightings(lambdas)
