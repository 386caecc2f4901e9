"""The verdict of a diagnosis, on gradients whose means are known."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from gh_downstream import Probe
from gh_downstream.comparison.diagnosis import diagnose
from tests.comparison.test_conflicts import drawn, log


def verdict(*arguments, **options):
    return diagnose(lines=log(drawn(*arguments, **options))).verdict()


def test_norms_far_apart_and_an_acute_angle_leave_nothing_to_change():
    head, *reasons = verdict([84], norms=(150.0, 1.0), scatter=0.02)
    assert head.startswith("Harmonization cannot change this training: nine of ten updates turn by 0.0 degrees at most")
    assert "84 ± 1 degrees, norms 150 to 1, conflict in 0 %: on average they agree" in reasons[-1]


def test_equal_norms_change_the_length_alone():
    head, *reasons = verdict([120], scatter=0.05)
    assert "can change little here but the length of the step, 1.5" in head
    assert "conflict in 100 %: on average real; the plain sum opposes a loss in 0 %" in reasons[-1]


def test_a_weak_loss_that_the_sum_opposes_may_gain():
    head, *reasons = verdict([97], norms=(1.0, 40.0), scatter=0.1)
    assert head.startswith("Harmonization may change this training: the conflict is real, and the loss that the plain")
    assert "alignment -0.1" in head
    assert "on average real" in reasons[-1]


def test_a_weak_loss_in_noise_alone_is_weighed_up_and_that_is_said():
    head, *reasons = verdict([90], norms=(1.0, 40.0), scatter=0.1, seed=1)
    assert head.startswith("Harmonization would weigh the weaker loss up where noise is against it")
    assert "no conflict is shown beyond noise" in head
    assert "no more than noise" in reasons[-1]


def test_what_happened_early_counts():
    early = log(drawn([100], norms=(1.0, 40.0), scatter=0.1, count=30))
    late = [line | {"step": line["step"] + 30} for line in log(drawn([60], scatter=0.1, count=60))]
    head, *reasons = diagnose(lines=[*early, *late]).verdict()
    assert "first third of the steps: alignment" in head
    assert "second third" not in head
    assert [reason.split(",")[0] for reason in reasons] == [
        *("first third of the steps", "second third", "last third", "all logged steps"),
    ]


class Three(nn.Module):
    """Three losses on one trunk, of which the first two conflict."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x):
        out = self.trunk(x)
        return {"a": out[:, 0].mean(), "b": -0.2 * out.sum(1).mean(), "c": out[:, 2].square().mean()}


def test_three_losses_in_a_loop_of_ones_own(tmp_path):
    model = Three()
    probe = Probe("sum", shared=model.trunk, tasks=["a", "b", "c"])
    for seed in range(8):
        probe.weigh(model(torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))))
    found = diagnose(probe)
    reasons = found.verdict()[1:]
    assert len(reasons) == 3
    assert "last weights, a – b" in reasons[0]
    assert "on average real" in reasons[0]
    conflict, changes = found.tables()
    assert {row[0] for row in changes.rows} >= {f"last weights: {word}" for word in ("sum", "gh", "gh++")}
    assert not any("official" in row[0] for row in changes.rows)  # of two tasks alone
    assert [row[0] for row in conflict.rows][:3] == [f"last weights · {pair}" for pair in ("a – b", "a – c", "b – c")]
    found.write(tmp_path / "diagnosis.html", "three losses")
    assert (tmp_path / "diagnosis.html").read_text().count("<img") == 1
    with pytest.raises(ValueError, match="two tasks"):
        diagnose(probe, weightings=["gh++:official"])


def test_the_cap_of_the_training_holds():
    model = Three()
    probe = Probe("gh:max_weight=1.5", shared=model.trunk, tasks=["a", "b", "c"])
    for seed in range(8):
        probe.weigh(model(torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))))
    assert float(diagnose(probe).parts[-1].updates["gh"].weights.max()) == 1.5


def test_without_anything_measured_it_says_so():
    with pytest.raises(ValueError, match="measure batches"):
        diagnose(lines=[{"step": 1, "total": 1.0}])


def test_a_short_log_says_which_thirds_it_cannot_judge():
    lines = log(drawn([120], scatter=0.05, count=9))
    found = diagnose(lines=lines[:1] + lines[3:])
    assert found.verdict()[-1] == (
        "Left out, with fewer than 4 logged steps: first third of the steps: 1; second third: 3; last third: 3. To see "
        "them, log more often (training.log_every)."
    )
    assert not any("Left out" in said for said in diagnose(lines=log(drawn([120], count=60))).verdict())
    with pytest.raises(ValueError, match=r"too few logged steps .*: 3, and 4 are the least\. Log more often"):
        diagnose(lines=lines[:3])


def test_no_interval_of_a_cosine_leaves_its_range_and_no_zero_is_negative():
    found = diagnose(lines=log(drawn([172], scatter=0.1, count=5)))
    intervals = re.findall(r"\[(-?[\d.]+), (-?[\d.]+)\]", found.tables()[0].to_text())
    assert min(float(low) for low, _ in intervals) >= -1
    right = diagnose(lines=log(drawn([90.001], norms=(1.0, 1e4), count=40)))
    assert "-0.00" not in "\n".join([*right.verdict(), *(table.to_text() for table in right.tables())])


def test_what_is_not_shown_and_what_the_bisector_is_are_said():
    pytest.importorskip("torchjd")
    conflict, changes = diagnose(lines=log(drawn([90], scatter=0.1, seed=1))).tables()
    assert "not shown" in [row[conflict.columns.index("shown")] for row in conflict.rows]
    assert any(note.startswith("imtlg: ") for note in changes.notes)
    _, named = diagnose(lines=log(drawn([90])), weightings=["gh"]).tables()
    assert not any("imtlg" in note for note in named.notes)


def test_the_example_of_the_docs_runs_as_it_stands_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "diagnose.md").read_text()
    (example,) = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    model = Three()
    names = {
        "model": model,
        "batches": torch.randn(8, 16, 4, generator=torch.Generator().manual_seed(0)),
        "alignment_loss": lambda batch: model(batch)["a"],
        "task_loss": lambda batch: model(batch)["b"],
    }
    exec(compile(example, "docs/diagnose.md", "exec"), names)
    assert capsys.readouterr().out.startswith("Harmonization ")
    assert (tmp_path / "diagnosis.html").is_file()
