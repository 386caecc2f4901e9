import runpy
from pathlib import Path

import pytest

pytest.importorskip("latex2mathml")
to_markdown = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "restructured.py"))["to_markdown"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("See :class:`~gh_downstream.GH` and :func:`fork`.", "See `GH` and `fork`."),
        ("A loop::\n\n    a = 1\n\n    b = 2\n\nEnd.", "A loop:\n\n```python\na = 1\n\nb = 2\n```\n\nEnd."),
        (".. warning:: Large\n    weights.\n\nEnd.", "!!! warning\n\n    Large\n    weights.\n\nEnd."),
        ("===  ===\na    b c\nd    e\n===  ===\nEnd.", "\n|  |  |\n| --- | --- |\n| a | b c |\n| d | e |\n\nEnd."),
    ],
)
def test_what_is_restructured_is_markdown(written, expected):
    assert to_markdown(written) == expected


def test_formulas_are_mathml():
    text = to_markdown("With :math:`\\tau_1`:\n\n    .. math::\n        a = b,\n        c\n\nEnd.")
    assert text.count("<math ") == 2
    assert 'display="block"' in text
    assert "math::" not in text
    assert text.endswith("End.")
