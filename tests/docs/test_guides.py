"""The guides' blocks of Python run as they stand there, one after another."""

import re
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
