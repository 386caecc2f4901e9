"""The command that measures what harmonization costs; what it measures is tested with its steps."""

import json
import math
import os
from pathlib import Path

import pytest

pytest.importorskip("torchvision", reason="needs pip install 'gh_downstream[detection]'")
pytest.importorskip("timm", reason="needs pip install 'gh_downstream[classification]'")
pytest.importorskip("sklearn", reason="needs pip install 'gh_downstream[classification]'")

from gh_downstream.cli import benchmark as module
from gh_downstream.cli.benchmark import benchmark
from gh_downstream.comparison.presets import GeneratedData
from gh_downstream.training.benchmark import FORK, variants
from gh_downstream.training.configs import find_config

pytestmark = pytest.mark.slow

ENCODER = ["encoder_options={width: 32, layers: 1}", "batch_size=8"]


@pytest.fixture
def few(monkeypatch):
    """Fewer methods."""
    kept = [chosen for chosen in module.CONFIGS["classification"] if {"method=source_only", "method=mcd"} & {*chosen}]
    monkeypatch.setitem(module.CONFIGS, "classification", kept)


@pytest.fixture
def in_scenes(tmp_path, monkeypatch):
    """A working folder with fewer mini-scenes where the configurations look for them."""
    from gh_downstream.retrieval.data.mini_scenes import make_mini_scenes

    make_mini_scenes(tmp_path / "datasets" / "mini_scenes", train=20, target=20, val=1, test=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_rows(path):
    table = json.loads(path.read_text())
    return table, [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def test_it_prints_and_writes_the_table(in_scenes, capsys):
    benchmark([*ENCODER, "target.side=both"], engine="retrieval", rounds=2, output=in_scenes / "tables")
    printed = capsys.readouterr().out
    table, rows = read_rows(in_scenes / "tables" / "retrieval.json")
    assert [row["step"] for row in rows] == list(variants())
    assert FORK in printed
    plain = rows[0]
    assert (plain["ratio"], plain["lower quartile"], plain["upper quartile"], plain["extra MiB"]) == (1, 1, 1, 0)
    assert plain["ratio of FLOPs"] == 1 < rows[1]["ratio of FLOPs"]
    assert "8 source images of 3 x 64 x 64" in printed
    assert "batch_size=8" in table["header"][-1]
    assert (in_scenes / "tables" / "retrieval.md").exists()


def test_it_measures_each_method(few, tmp_path, capsys):
    benchmark(["batch_size=4"], engine="classification", rounds=2, output=tmp_path)
    assert "source_only" in capsys.readouterr().out
    table, rows = read_rows(tmp_path / "classification.json")
    assert "mcd: MCD, 4 source images of 1 x 28 x 28, 4 target images of 1 x 28 x 28, float32" in table["header"]
    steps = list(variants())
    expected = [("source_only", steps[0]), *(("mcd", step) for step in steps if step != FORK)]
    assert [(row["workload"], row["step"]) for row in rows] == expected
    for row in rows:
        first = next(other for other in rows if other["workload"] == row["workload"])
        assert row["ratio of FLOPs"] == pytest.approx(row["GFLOP"] / first["GFLOP"])
        assert (row["ratio of FLOPs"] > 1) == (row["step"] != steps[0])
        assert all(math.isfinite(row[name]) and row[name] > 0 for name in table["columns"][4:-1])
    sizes = {row["workload"]: (row["parameters"], row["shared"]) for row in rows}
    backbone = (16 * 25 + 16) + (32 * 16 * 25 + 32) + (512 * 128 + 128) + (128 * 128 + 128) + 2 * 128
    classifier = 128 * 10 + 10
    assert sizes["source_only"] == (backbone + classifier, 0)
    assert sizes["mcd"] == (backbone + 2 * classifier, backbone)


@pytest.fixture
def drawn(monkeypatch):
    """The folders that would be drawn."""
    folders = []
    monkeypatch.setattr(GeneratedData, "make", lambda data, folder: folders.append(folder))
    return folders


@pytest.mark.parametrize(
    ("config", "engine"),
    [
        ("retrieval/mini", "retrieval"),
        ("classification/digits", "classification"),
        ("detection/mini/da", "detectron2"),
        (None, "native"),
    ],
)
def test_the_engine_is_that_of_the_configuration(config, engine, monkeypatch):
    def workload(*arguments):
        raise ValueError(f"measured on {arguments[0]}")

    monkeypatch.setattr(module, "_workload", workload)
    with pytest.raises(ValueError, match=f"measured on {engine}$"):
        benchmark(config=config)


def test_only_mini_data_are_drawn_and_only_where_they_are_missing(in_scenes, drawn):
    config = find_config("retrieval/mini")
    module._workload("retrieval", config, [])
    module._workload("retrieval", config, ["source.path=mine/train.csv", "target.path=mine/train.jsonl"])
    assert not drawn
    os.rename("datasets/mini_scenes", "datasets/elsewhere")
    module._workload("retrieval", config, [])
    module._workload("native", find_config("detection/native/mini"), [])
    assert {str(folder) for folder in drawn} == {"datasets/mini_scenes", "datasets/mini_cityscapes"}


def test_the_mini_data_of_detectron2_are_drawn_where_it_looks_for_them(in_scenes, drawn, monkeypatch):
    pytest.importorskip("detectron2")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(in_scenes / "mine"))
    config = find_config("detection/mini/da")
    module._workload("detectron2", config, [])
    module._workload("detectron2", config, ["DATASETS.TRAIN", "('coco_2017_train',)", "DATASETS.TARGET=()"])
    assert drawn == [in_scenes / "mine" / "mini_cityscapes"]


FOLDER = ("source.format=folder", "source.domain=null", "source.path=none/amazon")


@pytest.mark.parametrize(
    ("engine", "config", "overrides", "expected"),
    [
        ("retrieval", "none.yaml", (), "none.yaml"),
        ("retrieval", None, ("target.side=texts",), "no images"),
        ("retrieval", None, ("source.path=mine/train.csv",), "mine/train.csv"),
        ("classification", "classification/digits", FOLDER, "none/amazon"),
        ("speech", None, (), "native, detectron2"),
    ],
)
def test_a_mistake_is_one_line(in_scenes, engine, config, overrides, expected):
    with pytest.raises((ValueError, OSError)) as raised:
        benchmark([*overrides], engine=engine, config=config, rounds=2)
    assert expected in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert not Path("outputs").exists()
