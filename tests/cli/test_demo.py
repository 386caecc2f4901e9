"""The command of the demo."""

import subprocess
import sys

import pytest

from gh_downstream.cli.demo import demo


def test_detectron2_asked_for_but_missing_is_one_line_and_touches_nothing(tmp_path):
    call = f"demo(engine='detectron2', output=Path('{tmp_path}/out'), datasets=Path('{tmp_path}/data'))"
    code = f"""
import sys
sys.modules["detectron2"] = None
from pathlib import Path
from gh_downstream.cli.demo import demo
try:
    {call}
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = result.stdout.splitlines()
    assert "pip install --no-build-isolation" in line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [({"only": "retrieval"}, "mini_scenes"), ({"only": "detection", "engine": "native"}, "mini_cityscapes")],
)
def test_data_of_something_else_are_left_alone(arguments, folder, tmp_path):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "thesis.tex").touch()
    with pytest.raises(ValueError, match=f"{folder} holds something else"):
        demo(**arguments, output=tmp_path / "out", datasets=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("arguments", "option"), [({"only": "half"}, "--only"), ({"engine": "yolo"}, "--engine")])
def test_a_mistake_is_one_line(arguments, option):
    with pytest.raises(ValueError, match=option):
        demo(**arguments)
