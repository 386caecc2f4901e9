"""The log of a loss that cannot reach the log of its trainer."""

import pytest
import torch

from gh_downstream.harmonization import Report
from gh_downstream.integrations.report_log import ReportLog


def report(dot):
    return Report(("alignment", "task"), torch.tensor([[1.0, dot], [dot, 4.0]]), torch.tensor([1.5, 1.0]))


def test_a_line_has_the_last_measurement_and_the_conflicts_since_the_last_line(caplog):
    caplog.set_level("INFO", "gh_downstream")
    log = ReportLog(every=2)
    for dot in (-1.0, 0.5, 1.0, -0.5, -1.0):
        log(report(dot))
    first, second = caplog.messages
    assert first.startswith("harmonization, backward pass 2: gh/cosine 0.25")
    assert second.startswith("harmonization, backward pass 4: gh/cosine -0.25")
    for line in (first, second):
        assert "gh/weight/alignment 1.5" in line
        assert "gh/norm/task 2" in line
        assert line.endswith("gh/conflict_rate 0.5")


def test_every_is_checked():
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        ReportLog(every=0)
