"""Where updates point, against the plane in which two gradients lie."""

import math

import pytest
import torch

from gh_downstream import GH, GHPlusPlus, GHPlusPlusOfficial, Sum
from gh_downstream.comparison.atlas import ANGLES, RATIOS, chart, families
from gh_downstream.harmonization import parse_weighting

EQUAL = RATIOS.index(1.0)


def test_the_sum_points_where_vectors_add_up():
    charted = chart(Sum())
    assert (charted.gain == 1).all()
    torch.testing.assert_close(charted.direction[:, EQUAL], torch.tensor(ANGLES).double() / 2)
    k = ANGLES.index(90.0)
    expected = torch.tensor([math.degrees(math.atan(ratio)) for ratio in RATIOS]).double()
    torch.testing.assert_close(charted.direction[k], expected)
    opposed = charted.opposes[ANGLES.index(150.0)]
    assert opposed.tolist() == [True, True, False, True, True]


def test_only_weightings_that_promise_it_never_oppose_a_gradient():
    for weighting in (GH(), GHPlusPlus("adaptive"), GHPlusPlus(0.3, guard=True)):
        assert not chart(weighting).opposes.any()
    for weighting in (Sum(), GHPlusPlus(), GHPlusPlusOfficial()):
        assert chart(weighting).opposes.any()


def test_of_gradients_of_one_length_all_of_ours_point_where_the_sum_does():
    plain = chart(Sum())
    for weighting in (GH(), GHPlusPlus(), GHPlusPlus("adaptive")):
        assert chart(weighting).turned_from(plain)[:, EQUAL].max() < 1e-6


def test_families_are_those_of_theory():
    pytest.importorskip("torchjd")
    words = ["sum", "gh", "gh++", "mean", "pcgrad", "gradvac", "upgrad", "imtlg", "fairgrad", "gh:max_weight=2"]
    found = families({word: chart(parse_weighting(word)) for word in words})
    assert found == [
        ["sum", "mean"],
        ["gh", "pcgrad", "gradvac", "upgrad"],
        ["gh++"],
        ["imtlg", "fairgrad"],
        ["gh:max_weight=2"],
    ]


def test_an_update_that_vanishes_has_no_direction():
    charted = chart(lambda gramian: torch.zeros(2, dtype=torch.float64))
    assert charted.direction.isnan().all()
    assert (charted.gain == 0).all()
    assert not charted.opposes.any()
