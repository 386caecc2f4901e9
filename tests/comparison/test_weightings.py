"""How weightings are written on the command line of a comparison."""

import pytest

from gh_downstream.comparison.weightings import lambda_of, lambda_weightings


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
