"""The guides' blocks of Python run as they stand there, one after another; so does the loop with accelerate."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("guide", ["loop"])
def test_the_blocks_of_a_guide_run(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": guide}
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / f"{guide}.md").read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/{guide}.md, block {number + 1}", "exec"), names)


@pytest.mark.slow
def test_the_loop_with_accelerate_learns_the_target_in_two_processes(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command.append(str(ROOT / "examples" / "accelerate_loop.py"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert float(re.search(r"target: ([\d.]+) %", result.stdout)[1]) > 75
    assert len(list(tmp_path.glob("outputs/accelerate_loop/random_states_*"))) == 2
