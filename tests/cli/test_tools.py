"""Each file in tools/ is a call into the command line."""

import runpy
import sys
from pathlib import Path

import pytest

TOOLS = sorted((Path(__file__).parents[2] / "tools").glob("*.py"))


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_every_tool_explains_itself(tool, monkeypatch, capsys):
    if tool.stem == "train_net":
        pytest.importorskip("detectron2")
    monkeypatch.setattr(sys, "argv", [str(tool), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(tool), run_name="__main__")
    assert stopped.value.code == 0
    assert "usage:" in capsys.readouterr().out.lower()
