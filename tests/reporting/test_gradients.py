"""What the lines of a training's metrics say of its gradients."""

import math

import pytest

from gh_downstream.reporting import Spread
from gh_downstream.reporting.gradients import gradient_pictures, gradient_table
from gh_downstream.reporting.plots import to_png


def line(step, angle, task=1.0, norm=2.0, **more):
    return {
        "step": step,
        "angle": angle,
        "conflict": float(angle > 90),
        "opposed": 0.0,
        "weight/task": task,
        "weight/alignment": 1.0,
        "norm/task": norm,
        "norm/alignment": 0.5,
        **more,
    }


def test_the_table_is_over_all_seeds():
    first = [line(1, 60, gain=1.0), line(2, 120, task=3.0, norm=4.0, gain=2.0)]
    second = [line(1, 100, opposed=1.0)]
    table = gradient_table({"source-only": [[], []], "GH": [first, second]})
    assert len(table.rows) == 1
    name, conflict, opposed, angle, gain, alignment, task, ratio = table.rows[0]
    assert name == "GH"
    assert conflict == pytest.approx(200 / 3)
    assert opposed == pytest.approx(100 / 3)
    assert angle == 100
    assert gain == Spread(1.5, pytest.approx(0.5**0.5), 2)
    assert (alignment, task, ratio) == (1.0, 3.0, 4.0)


def test_one_gain_has_no_spread():
    assert math.isnan(gradient_table({"GH": [[line(1, 60, gain=1.0)]]}).rows[0][4])


def test_the_pictures_leave_out_models_without_gradients():
    pictures = gradient_pictures({"source-only": [], "GH": [line(1, 60), line(2, 120)]})
    assert len(pictures) == 2
    for picture in pictures:
        assert to_png(picture.image, dpi=40).startswith(b"\x89PNG")
        labels = [text.get_text() for legend in picture.image.legends for text in legend.get_texts()]
        assert labels
        assert not any(label.startswith("source-only") for label in labels)
