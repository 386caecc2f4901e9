"""What differences over seeds show, against values by hand, by tables and by drawing."""

import math
import statistics

import numpy as np
import pytest

from gh_downstream.comparison.differences import LEVEL, Difference, verdicts

STEADY = Difference((0.9, 1.0, 1.1, 1.05, 0.95))
NONE = Difference((0.1, -0.1, 0.05, -0.05, 0.0))
NOISY = Difference((10.0, -8.0, 3.0, -6.0, 2.0))


def test_the_interval_is_student_s():
    """By hand: differences 1, 2, 3 have mean 2, deviation 1, and t of two degrees of freedom is 4.303."""
    difference = Difference((1.0, 2.0, 3.0))
    assert difference.mean == pytest.approx(2)
    assert difference.half == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert not difference.excludes_zero
    assert STEADY.excludes_zero
    assert str(STEADY) == "[0.90, 1.10] *"


def share_shown(difference, seeds, draws=1500):
    """How often as many seeds of unit spread show a difference."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(difference, 1.0, (draws, seeds))
    found = [Difference(tuple(row)) for row in drawn.tolist()]
    return statistics.fmean(one.excludes_zero for one in found)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_what_is_detectable_is_seen_in_four_of_five_comparisons(seeds):
    unit = np.linspace(-1, 1, seeds)
    difference = Difference(tuple((unit / unit.std(ddof=1)).tolist()))
    assert share_shown(difference.detectable, seeds) == pytest.approx(0.8, abs=0.04)


def test_the_seeds_that_a_margin_needs_show_it_and_fewer_do_not():
    unit = np.linspace(-1, 1, 5)
    difference = Difference(tuple((2 * unit / unit.std(ddof=1)).tolist()))
    seeds = difference.seeds_for(2.0)
    assert share_shown(1.0, seeds) >= 0.78
    assert share_shown(1.0, seeds - 2) < 0.8
    assert difference.seeds_for(0.2) > 100 * seeds / 2
    assert Difference((1.0, 1.0)).seeds_for(1.0) is None


def test_the_same_is_said_only_where_it_is_shown():
    said = verdicts({"steady": STEADY, "none": NONE, "noisy": NOISY, "single": Difference((5.0,))}, 0.5)
    assert said["steady"] == "better"
    assert said["none"] == "same within 0.5"
    assert said["noisy"] == f"cannot tell below {NOISY.detectable:.1f}"
    assert "single" not in said
    assert verdicts({"steady": STEADY}, 2.0) == {"steady": "better, same within 2"}
    assert verdicts({"worse": Difference(tuple(-value for value in STEADY.values))}, 0.5) == {"worse": "worse"}
    assert verdicts({}, 1.0) == {}


def test_more_comparisons_need_more_evidence():
    doubtful = Difference((1.0, 2.0, 3.0, 0.2, 0.9))
    assert 0.01 < doubtful.p_different() < 0.05
    assert verdicts({"one": doubtful}, 0.1) == {"one": "better"}
    many = {str(k): NOISY for k in range(9)}
    assert verdicts({"one": doubtful} | many, 0.1)["one"].startswith("cannot tell below")


def test_seeds_that_all_say_the_same_leave_no_doubt():
    assert verdicts({"equal": Difference((0.0, 0.0, 0.0)), "more": Difference((2.0, 2.0))}, 1.0) == {
        "equal": "equal",
        "more": "better",
    }


@pytest.mark.parametrize("true", [0.0, 1.0])
def test_wrong_verdicts_are_as_rare_as_they_should_be(true):
    """At the margin the same is said in 5 % of the comparisons at most, and without a difference one is seen in 5 %."""
    rng = np.random.default_rng(1)
    found = [Difference(tuple(row)) for row in rng.normal(true, 1.0, (800, 8)).tolist()]
    wrong = [one.p_equivalent(1.0) < LEVEL if true else one.p_different() < LEVEL for one in found]
    assert statistics.fmean(wrong) == pytest.approx(LEVEL, abs=0.02)


def test_equal_runs_are_said_to_be_equal():
    said = verdicts({"copy": Difference((0.0, 0.0, 0.0)), "near": Difference((0.01, -0.01, 0.0))}, 1.0)
    assert said == {"copy": "equal", "near": "same within 1"}
