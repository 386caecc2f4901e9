"""Numbers in their ranges, and what is said of the others."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from gh_downstream.harmonization.checks import check_at_least, check_numbers


@dataclass
class Settings:
    """Numbers of all kinds."""

    weight: float = 1.0
    bias: float = -1.0
    cap: float | None = None
    sizes: list[int] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)
    name: str = "x"
    on: bool = False


def check(**values):
    check_numbers(Settings(**values), bias="", sizes="> 0", rates=">= 0, < 1")


def test_numbers_in_their_ranges_are_fine():
    check(
        cap=3, sizes=[1, 2], rates={"a": 0, "b": 0.5}, options={"deep": [{"on": True, "word": "y"}, 0]}, weight=10**400
    )
    check(weight=np.float32(0.5), bias=-1e300, sizes=(np.int64(1),))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": math.nan}, "weight must be finite, got nan"),
        ({"bias": -math.inf}, "bias must be finite, got -inf"),
        ({"weight": -1}, "weight must be at least 0, got -1"),
        ({"weight": True}, "weight must be a number at least 0, got True"),
        ({"bias": "1"}, "bias must be a number, got '1'"),
        ({"cap": np.float32(math.inf)}, r"cap must be finite, got .*inf\)?"),
        ({"sizes": [1, 2.5]}, r"sizes\[1\] must be a whole number, got 2\.5"),
        ({"sizes": [1, 0]}, r"sizes\[1\] must be above 0, got 0"),
        ({"sizes": 5 * [True]}, r"sizes\[0\] must be a number above 0, got True"),
        ({"cap": []}, r"cap must be a number at least 0, got \[\]"),
        ({"weight": [1.0]}, r"weight must be a number at least 0, got \[1\.0\]"),
        ({"weight": {}}, r"weight must be a number at least 0, got \{\}"),
        ({"rates": {"a": 0, "x.*": 1}}, r"rates\.x\.\* must be at least 0 and below 1, got 1"),
        ({"options": {"deep": [{"rate": math.nan}]}}, r"options\.deep\[0\]\.rate must be finite, got nan"),
    ],
)
def test_others_are_named(values, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check(**values)


def test_a_node_of_detectron2_is_a_mapping_of_numbers():
    check_numbers({"WEIGHT": 1.0, "ON": True, "NAME": "x"}, WEIGHT="> 0")
    with pytest.raises(ValueError, match=r"^WEIGHT must be a number above 0, got True$"):
        check_numbers({"WEIGHT": True}, WEIGHT="> 0")
    with pytest.raises(ValueError, match=r"^STEPS\[0\] must be at least 1, got -1$"):
        check_numbers({"STEPS": (-1,)}, ">= 1")
    with pytest.raises(ValueError, match=r"^STEPS\[1\] must be a whole number, got 0\.8$"):
        check_numbers({"STEPS": (1, 0.8)}, STEPS="whole, >= 0")
    with pytest.raises(ValueError, match=r"^every must be a number at least 1, got \[\]$"):
        check_at_least("every", [], 1)
    with pytest.raises(ValueError, match=r"^every must be finite, got inf$"):
        check_at_least("every", math.inf, 1)
