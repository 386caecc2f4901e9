"""Words of weightings on the command line of a comparison."""

import pytest
import torch

from gh_downstream.comparison.weightings import in_length, lambda_of, lambda_weightings, sweep_weightings
from gh_downstream.harmonization import GH, parse_weighting


def test_the_length_is_part_of_the_word_where_it_means_something():
    assert in_length("gh++:0.3", "tasks") == "gh++:0.3"
    assert in_length("gh", "sum") == "gh:length=sum"
    assert in_length("gh:length=own", "sum") == "gh"
    assert in_length("sum", "sum") == "sum"
    assert in_length("sum:length=sum", "tasks") == "sum"
    assert in_length("gh:length=sum", "tasks") == "gh:length=sum"


def test_weightings_of_torchjd_take_steps_that_compare():
    pytest.importorskip("torchjd")
    gramian = torch.tensor([[4.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(parse_weighting(in_length("pcgrad", "tasks"))(gramian), GH()(gramian))
    torch.testing.assert_close(parse_weighting(in_length("mean", "tasks"))(gramian), torch.ones(2).double())


@pytest.mark.parametrize("word", ["ghpp", "none", "gh:0.3", "gh++:1.5", "gh++:official:guard"])
def test_what_there_is_not_is_said_of_the_word_as_it_was_given(word):
    with pytest.raises(ValueError, match="weighting") as caught:
        in_length(word, "tasks")
    assert repr(word) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lambdas_have_both_ends():
    assert lambda_weightings("0:1:0.5") == ["sum", "gh++:0", "gh++:0.5", "gh++:1"]
    tenths = lambda_weightings("0:1:0.1")
    assert len(tenths) == 12
    assert tenths[4] == "gh++:0.3"
    assert lambda_weightings("0.2,0.7") == ["sum", "gh++:0.2", "gh++:0.7"]
    words = ("gh++:0.3", "gh++", "gh++:adaptive", "gh++:guard", "gh++:official:0.3", "gh", "sum", "source-only")
    assert [lambda_of(word) for word in words] == [0.3, 0.5, None, None, None, None, None, None]


@pytest.mark.parametrize("lambdas", ["0:2:0.5", "0:1", "a", "0:1:0", "1:0:0.1", "", "-0.5,0"])
def test_lambdas_that_are_none_are_refused(lambdas):
    with pytest.raises(ValueError, match="expected START:STOP:STEP"):
        lambda_weightings(lambdas)


def test_a_sweep_has_as_many_weights_as_there_are_weightings_to_compare_with():
    words = ["sum", "gh", "gh++", "gh++:adaptive", "pcgrad", "fixed:weight=7"]
    assert sweep_weightings("0.1:10", words) == [f"fixed:weight={w}" for w in ("0.1", "0.464", "2.15", "10")]
    # The plain sum is the weight 1.
    assert sweep_weightings("0.1:10", words[:4]) == ["fixed:weight=0.1", "fixed:weight=10"]
    for word in sweep_weightings("1e-3:1e3", words):
        assert repr(parse_weighting(word)) == word


@pytest.mark.parametrize("sweep", ["", "1", "0:1", "-1:1", "10:0.1", "1:1", "a:b", "1:inf", "nan:1", "0.1:1:10"])
def test_a_sweep_that_is_none_is_refused(sweep):
    with pytest.raises(ValueError, match=r"expected LOWEST:HIGHEST.*0\.1:10"):
        sweep_weightings(sweep, ["sum", "gh"])


@pytest.mark.parametrize("words", [["sum"], ["sum", "fixed:weight=3"], ["gh", "gh++"]])
def test_a_sweep_needs_what_it_is_compared_with(words):
    with pytest.raises(ValueError, match="name sum and others"):
        sweep_weightings("0.1:10", words)
