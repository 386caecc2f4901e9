"""Two gloo processes against one process on the joined batch."""

import pytest
import torch

from gh_downstream.training import load_checkpoint
from tests.kill import lines_of
from tests.training import toy

pytestmark = pytest.mark.slow

CASES = {
    "parameters": {"weighting": "gh++", "warmup_steps": 3},
    "features": {"weighting": "gh++", "measure": "features"},
    "plain sum": {"weighting": "none"},
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case, ranks, tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    settings = (CASES[case], case == "features", {"ema": 0.8} if case == "plain sum" else {})
    (first, metrics), (second, of_the_other) = ranks(toy.run_rank, two, *settings, group=False)
    ((single, _),) = ranks(toy.run_rank, one, *settings, number=1)
    for name, weights in first.items():
        assert torch.equal(weights, second[name]), name
        if name != "seen":  # A buffer sees the samples of its own rank; all end with those of the main one.
            torch.testing.assert_close(weights, single[name], rtol=1e-4, atol=1e-6)
    saved = load_checkpoint(two / "last.pt")
    assert all(torch.equal(saved["model"][name], weights) for name, weights in first.items())
    if case == "plain sum":
        averaged = load_checkpoint(one / "last.pt")["average"]
        assert not torch.equal(averaged["head.weight"], single["head.weight"])
        for name in averaged.keys() - {"seen"}:
            torch.testing.assert_close(saved["average"][name], averaged[name], rtol=1e-4, atol=1e-6)
    assert metrics == of_the_other != {}
    for ours, theirs in zip(lines_of(two), lines_of(one), strict=True):
        # In several processes a fork measures the norms up to a common factor.
        compared = {key for key in ours if case != "features" or not key.startswith("gh/norm/")}
        assert ours.keys() == theirs.keys()
        assert {key: ours[key] for key in compared} == pytest.approx({key: theirs[key] for key in compared}, 1e-3, 1e-5)
