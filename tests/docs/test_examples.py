"""The examples run as they stand there, and learn the target."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(name, folder, *arguments):
    """Run an example in a folder of its own; return what it printed."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, EXAMPLES / name, *arguments]
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("plain_loop.py", "torch"),
        pytest.param("lightning_module.py", "lightning", marks=pytest.mark.slow),
        pytest.param("transformers_trainer.py", "transformers", marks=pytest.mark.slow),
    ],
)
def test_a_script_learns_the_target(name, library, tmp_path):
    pytest.importorskip(library)
    assert float(re.search(r"target: ([\d.]+) %", run(name, tmp_path, "gh++:adaptive"))[1]) > 80


@pytest.mark.slow
def test_open_clip_s_own_script_learns_the_pairs_and_logs_what_was_measured(tmp_path):
    pytest.importorskip("open_clip_train")
    printed = run("open_clip_pairs.py", tmp_path)
    losses = [float(loss) for loss in re.findall(r"Contrastive_loss: ([\d.]+)", printed)]
    assert losses[-1] < losses[0] / 2
    (log,) = (tmp_path / "outputs").rglob("out.log")
    assert "gh/angle" in log.read_text()


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    notebook = nbformat.read(EXAMPLES / "two_losses.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)  # as it is committed
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    (table,) = (output.text for output in outputs if "accuracy" in output.get("text", ""))
    rows = {line.split()[0]: line.split() for line in table.splitlines()}
    assert rows["gh"][2] == rows["gh++:adaptive"][2] == "0%"  # never against one of the losses
    assert int(rows["sum"][2][:-1]) > 0
