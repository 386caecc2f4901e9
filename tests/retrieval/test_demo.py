"""The demo of retrieval: its runs, its report, and what a second call does, on a few mini-scenes and steps."""

import json
import logging
import re
from pathlib import Path

import demo
import pytest
import yaml

from gh_downstream.reporting import Spread
from gh_downstream.retrieval.data import make_mini_scenes
from gh_downstream.retrieval.demo import (
    RUNS,
    FinishedRun,
    read_run,
    run_folder,
    summary_table,
    train_runs,
    write_demo_report,
)
from gh_downstream.retrieval.evaluation import METRICS, RetrievalResult

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "retrieval"
SEEDS = 2


def small_configs(folder):
    """Four steps of every configuration, evaluated after the second and the last."""
    folder.mkdir()
    content = {
        "_base_": str(CONFIGS / "mini.yaml"),
        "batch_size": 16,
        "training": {"steps": 4, "evaluate_every": 2, "log_every": 1},
        "optimizer": {"warmup_steps": 1},
    }
    (folder / "mini.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets") / "mini_scenes"
    make_mini_scenes(root, train=60, target=40, val=8, test=24)
    return root


@pytest.fixture(scope="module")
def finished(scenes, tmp_path_factory):
    """The configurations and the output folder of all runs."""
    configs, output = small_configs(tmp_path_factory.mktemp("configs") / "retrieval"), tmp_path_factory.mktemp("demo")
    train_runs(configs, scenes, output, SEEDS, jobs=2)
    return configs, output


def test_every_run_can_be_read(finished):
    _, output = finished
    runs = {(name, seed): read_run(run_folder(output, name, seed)) for name in RUNS.values() for seed in range(SEEDS)}
    assert len({run.configuration for run in runs.values()}) == len(runs)
    for (name, _), run in runs.items():
        assert set(run.results) == {"source", "target"}
        assert run.results["target"].num_images == 24
        assert list(run.recall[0]) == [2, 4]
        assert run.recall[1][-1] == run.results["target"].metrics["image_to_text_R@1"]
        assert bool(run.gradients) == (name != "source-only")
    # The methods of a seed begin alike: the first gradients have the same norms.
    first = [runs[name, 0].gradients[0]["gh/norm/task"] for name in ("aligned", "gh", "gh++")]
    assert first == pytest.approx([first[0]] * 3, rel=1e-5)
    assert runs["aligned", 1].gradients[0]["gh/norm/task"] != pytest.approx(first[0], rel=1e-3)


def test_a_second_call_keeps_what_is_finished(finished, scenes, caplog):
    configs, output = finished
    before = {path: path.read_bytes() for path in output.rglob("*.pt")}
    with caplog.at_level(logging.INFO):
        train_runs(configs, scenes, output, seeds=1, jobs=1)
    assert sum("was finished already, R@1 on the target" in message for message in caplog.messages) == len(RUNS)
    assert before
    assert {path: path.read_bytes() for path in output.rglob("*.pt")} == before


def test_the_report_shows_every_method(finished):
    _, output = finished
    table = write_demo_report(output, SEEDS)
    assert [row[0] for row in table.rows] == list(RUNS)
    assert json.loads((output / "table.json").read_text()) == table.as_dict()
    page = (output / "report.html").read_text()
    for method in RUNS:
        assert f">{method}<" in page
    assert page.count("data:image/png") == 5  # recall, two sheets of queries, angles, weights
    assert "Gradients of task and alignment" in page


def result(domain, recall):
    return RetrievalResult(domain, 24, 24, dict.fromkeys(METRICS, recall))


def run(source, target):
    return FinishedRun({"source": result("s", source), "target": result("t", target)}, "abc", ([1], [target]), [])


def test_the_summary_compares_with_source_only():
    table = summary_table(
        {"source-only": [run(80.0, 10.0), run(90.0, 20.0)], "aligned": [run(79.0, 30.0), run(85.0, 33.0)]}
    )
    first, second = table.rows
    assert first[:3] == ["source-only", 2, Spread(85.0, pytest.approx(50**0.5), 2)]
    assert first[-2:] == [1.0, 0.0]
    assert second[-2:] == [pytest.approx(2.1), 3.0]


def test_what_went_wrong_is_one_line(tmp_path, capsys):
    folder = tmp_path / "mini_scenes"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    arguments = ["--only", "retrieval", "--output", str(tmp_path / "out"), "--datasets", str(tmp_path)]
    assert demo.main(arguments) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ")
    assert re.search("holds something else than mini-scenes", message)
    assert not (tmp_path / "out").exists()
