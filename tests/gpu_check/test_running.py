"""The check of a GPU, rehearsed on what there is."""

import json
import sys

import pytest

from gh_downstream.gpu_check.running import PARTS, check_gpu, run_part
from gh_downstream.gpu_check.setting import Checks

REHEARSED = [name for name in PARTS if name not in ("tests", "detector")]  # The others take long here.


@pytest.mark.slow
def test_it_runs_small_and_writes_what_it_found(tmp_path, monkeypatch):
    pytest.importorskip("torchvision", reason="needs pip install 'gh_downstream[detection]'")
    pytest.importorskip("open_clip", reason="needs pip install 'gh_downstream[retrieval]'")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert check_gpu(tmp_path, REHEARSED, small=True)
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [part["name"] for part in report["parts"]] == REHEARSED
    assert {part["state"] for part in report["parts"]} == {"done"}
    assert all(part["tables"] and all(table["rows"] for table in part["tables"][:1]) for part in report["parts"])
    markdown = (tmp_path / "gpu_check.md").read_text()
    assert all(f"## {name}" in markdown for name in REHEARSED)
    assert "WRONG" not in markdown
    steps = next(part for part in report["parts"] if part["name"] == "pairs")["tables"][0]
    assert steps["rows"][0][steps["columns"].index("ratio")] == 1  # of the plain sum to itself


def test_what_is_not_reached_in_time_is_said(tmp_path):
    assert check_gpu(tmp_path, ["versions"], minutes=0.01)
    assert json.loads((tmp_path / "gpu_check.json").read_text())["parts"][0]["why"] == "no time was left"


def test_a_part_that_needs_what_is_missing_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    run_part("pairs", tmp_path / "result.json", small=True)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["state"] == "left out"
    assert found["why"].startswith("needs open_clip: pip install")


def test_a_part_that_fails_leaves_its_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PARTS, "versions", ("exact:relative_error", 60))  # which is no part
    run_part("versions", tmp_path / "result.json", small=True)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["state"] == "failed"
    assert found["why"].startswith("TypeError")
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"parts": ["speed"]}, {"minutes": 0}, {"minutes": float("nan")}])
def test_a_mistake_is_one_line(tmp_path, options):
    with pytest.raises(ValueError, match=r"^--") as raised:
        check_gpu(tmp_path, **options)
    assert len(str(raised.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_check_beyond_its_bound_or_without_a_number_is_wrong(capsys):
    checks = Checks("some", "of them")
    checks.add("within", 1e-3, lambda: 1e-3)
    assert len(list(checks.report())) == 1
    checks.add("beyond", 1e-3, lambda: 2e-3)
    checks.add("no number", 1e-3, lambda: float("nan"))
    checks.add("raises", 1e-3, lambda: 1 / 0)
    report = checks.report()
    assert [row[-1].split(":")[0] for row in next(report).rows] == ["right", "WRONG", "WRONG", "WRONG"]
    with pytest.raises(AssertionError, match=r"^wrong: beyond; no number; raises$"):
        next(report)
