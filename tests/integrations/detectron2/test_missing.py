"""Without Detectron2; this file runs everywhere."""

import subprocess
import sys

import pytest

OLD = (
    "import sys, types; d = types.ModuleType('detectron2'); e = types.ModuleType('detectron2.engine'); "
    "e.SimpleTrainer = type('SimpleTrainer', (), {'__init__': lambda self, model: None}); "
    "sys.modules.update({'detectron2': d, 'detectron2.engine': e})"
)
MISSING = "import sys; sys.modules['detectron2'] = None"


@pytest.mark.parametrize(("state", "problem"), [(MISSING, "detectron2"), (OLD, "too old")], ids=["missing", "old"])
def test_one_line_says_how_to_install_it(state, problem):
    code = f"{state}\nimport gh_downstream.detection.detectron2"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert problem in last
    assert "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2'" in last
