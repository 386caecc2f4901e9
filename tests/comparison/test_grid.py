"""The grid of a comparison on the real trainer: its cells, what they begin with, resuming, failures and the table."""

import dataclasses
import json
import math
import re
from pathlib import Path

import compare
import pytest
import yaml

from gh_downstream.comparison.grid import Grid, check_cell, read_timing, train_cell, train_grid
from gh_downstream.comparison.report import write_comparison
from gh_downstream.comparison.results import group_table, read_grid, read_run
from gh_downstream.comparison.tasks import TASKS, find_task, task_of_config
from gh_downstream.retrieval.data import make_mini_scenes
from gh_downstream.training import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
WEIGHTINGS = ["sum", "gh", "gh++:0.3"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A retrieval of four steps, in a folder of its own with its data."""
    folder = tmp_path_factory.mktemp("comparison")
    scenes = folder / "scenes"
    make_mini_scenes(scenes, train=60, target=40, val=8, test=24)
    content = {
        "_base_": str(CONFIGS / "retrieval" / "mini.yaml"),
        "batch_size": 16,
        "source": {"path": str(scenes / "source" / "train.csv")},
        "target": {"path": str(scenes / "target" / "train.jsonl")},
        "validation": {"target": {"path": str(scenes / "target" / "test.jsonl")}, "source": None},
        "training": {"steps": 4, "evaluate_every": 2, "log_every": 1, "checkpoint_every": 2},
        "optimizer": {"warmup_steps": 1, "schedule": "step"},
    }
    content["validation"]["source"] = {"path": str(scenes / "source" / "test.csv")}
    path = folder / "scenes-small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def grid_of(config, output, **changes):
    task = task_of_config(config, "retrieval")
    settings = {"weightings": WEIGHTINGS, "seeds": 2, "configs": CONFIGS, "datasets": output / "datasets"}
    return Grid([task], output=output, **settings | changes)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    grid = grid_of(config, tmp_path_factory.mktemp("finished"))
    assert train_grid(grid, 2) == []
    return grid


def test_every_weighting_of_a_seed_begins_alike(finished):
    first = {}
    for cell in finished.cells():
        run = read_run(cell)
        line = run.lines[0]
        assert line["step"] == 1
        losses = {key: value for key, value in line.items() if key.startswith("loss") or key == "total"}
        assert len(losses) > 2
        first.setdefault(cell.seed, []).append((cell.weighting, losses))
    for of_seed in first.values():
        assert [weighting for weighting, _ in of_seed] == WEIGHTINGS
        assert all(losses == of_seed[0][1] for _, losses in of_seed)
    assert first[0][0][1] != first[1][0][1]


def test_the_weightings_then_differ(finished):
    runs = {(cell.weighting, cell.seed): read_run(cell) for cell in finished.cells()}
    for seed in range(2):
        last = {weighting: runs[weighting, seed].lines[-2]["total"] for weighting in WEIGHTINGS}
        assert len(set(last.values())) == len(WEIGHTINGS)


def test_a_table_has_what_the_runs_logged(finished):
    (group,) = read_grid(finished)
    assert (group.task, group.baseline) == ("scenes-small", "as-configured")
    assert [(row.weighting, row.scope, sorted(row.runs)) for row in group.rows] == [
        (weighting, "shared", [0, 1]) for weighting in WEIGHTINGS
    ]
    base, gh, _ = group.rows
    assert base.mean("gain") == pytest.approx(1)
    assert base.largest_weight == pytest.approx(1)
    assert gh.largest_weight > 1
    assert gh.mean("opposed") == 0
    gains = [line["gain"] for run in gh.runs.values() for line in run.lines if "gain" in line]
    assert len(gains) == 8
    assert gh.mean("gain") == pytest.approx(sum(gains) / 8)
    assert all(math.isfinite(run.seconds) and run.seconds > 0 for run in gh.runs.values())
    table = group_table(group, [])
    assert [row[0] for row in table.rows] == WEIGHTINGS
    assert table.rows[1][4] == pytest.approx(sum(gh.values) / 2 - sum(base.values) / 2)


def test_the_report_has_findings_tables_and_figures(finished):
    write_comparison(finished)
    page = (finished.output / "report.html").read_text()
    for heading in ("Findings", "scenes-small, as-configured", "Two convex losses in the plane"):
        assert f"<h2>{heading}</h2>" in page
    assert "of the plain sum is" in page
    assert "http" not in page.replace("http-equiv", "")
    text = (finished.output / "report.md").read_text()
    pictures = re.findall(r"\((figures/[^)]+\.png)\)", text)
    assert len(pictures) == page.count("<img") == 6
    assert all((finished.output / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    rows = re.findall(r"^\| (\S+) \| shared \|", text, re.MULTILINE)
    assert rows == WEIGHTINGS
    (numbers,) = json.loads((finished.output / "results.json").read_text())
    assert [row["weighting"] for row in numbers["rows"]] == WEIGHTINGS
    assert numbers["rows"][0]["difference"] is None
    assert numbers["rows"][1]["difference"] is not None


def test_a_second_call_keeps_what_is_finished(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.output.rglob("*.pt")}
    timings = {cell.name: read_timing(cell.folder) for cell in finished.cells()}
    assert before
    for cell in finished.cells():
        check_cell(cell)
        assert train_cell(cell).startswith("was finished already, target/")
    assert before == {path: path.stat().st_mtime_ns for path in finished.output.rglob("*.pt")}
    assert timings == {cell.name: read_timing(cell.folder) for cell in finished.cells()}


def test_a_cell_of_another_configuration_is_refused_before_anything_is_trained(finished):
    changed = dataclasses.replace(finished, overrides=["optimizer.lr=0.5"], seeds=3)
    with pytest.raises(ConfigError, match=r"seed0 belongs to another configuration: optimizer\.lr was 0\.001 and is 0"):
        train_grid(changed, 1)
    assert not (finished.output / "scenes-small" / "as-configured" / "sum" / "shared" / "seed2").exists()


def test_a_cell_that_fails_is_reported_and_not_fatal(config, tmp_path, capsys):
    broken = tmp_path / "broken.yaml"
    broken.write_text(config.read_text())
    output = tmp_path / "output"
    blocked = output / "broken" / "as-configured" / "gh" / "shared" / "seed0"
    blocked.mkdir(parents=True)
    (blocked / "last.pt").write_bytes(b"damaged")
    arguments = ["--config", str(broken), "--engine", "retrieval", "--weightings", "sum,gh", "--seeds", "1"]
    assert compare.main([*arguments, "--output", str(output), "--jobs", "1"]) == 1
    out = capsys.readouterr().out
    assert "failed: broken, as-configured, gh, shared, seed 0: " in out
    assert "seed0/log.txt" in " ".join(out.split()).replace(" ", "")
    (group,) = json.loads((output / "results.json").read_text())
    assert [row["weighting"] for row in group["rows"]] == ["sum"]


def test_an_interrupted_cell_resumes_and_its_time_adds_up(config, tmp_path):
    short = grid_of(config, tmp_path / "output", weightings=["gh"], seeds=1, overrides=["training.steps=2"])
    (cell,) = short.cells()
    assert train_cell(cell).startswith("2 steps in")
    seconds, steps = read_timing(cell.folder)
    assert steps == 2
    # As a killed run would have left it: two of four steps done.
    saved = yaml.safe_load((cell.folder / "config.yaml").read_text())
    saved["training"]["steps"] = 4
    (cell.folder / "config.yaml").write_text(yaml.safe_dump(saved))
    whole = dataclasses.replace(short, overrides=[])
    assert read_run(whole.cells()[0]) is None
    check_cell(whole.cells()[0])
    assert train_cell(whole.cells()[0]).startswith("2 steps in")
    again, steps = read_timing(cell.folder)
    assert steps == 4
    assert again > seconds
    assert [line["step"] for line in read_run(whole.cells()[0]).gradients] == [1, 2, 3, 4]


def test_the_cells_of_a_task(tmp_path):
    task = find_task("digits")
    grid = Grid([task], ["sum", "gh"], tmp_path, CONFIGS, tmp_path, ["cdan", "mcd"], ["shared", "all"], seeds=2)
    cells = grid.cells()
    assert len({cell.folder for cell in cells}) == len(cells) == 2 * (1 + 2 * (1 + 2))
    assert cells[0].baseline == "source_only"
    assert [str(cell.folder.relative_to(tmp_path)) for cell in cells[1:4]] == [
        "digits/cdan/sum/shared/seed0",
        "digits/cdan/gh/shared/seed0",
        "digits/cdan/gh/all/seed0",
    ]
    assert all(cell.seed == 0 for cell in cells[:7])
    assert not any("harmonization" in override for override in cells[0].overrides)
    assert "harmonization.scope=all" in cells[3].overrides


def test_a_task_with_a_burn_in_goes_on_from_that_of_the_seed(tmp_path):
    grid = Grid([TASKS["detection"]], ["sum"], tmp_path, CONFIGS, tmp_path, seeds=2, overrides=["training.steps=9"])
    assert [cell.folder.relative_to(tmp_path) for cell in grid.burn_ins()] == [
        Path(f"detection/burn-in/seed{seed}") for seed in range(2)
    ]
    assert [cell.load_config().training.steps for cell in grid.burn_ins()] == [1000, 1000]
    for cell in grid.cells():
        check_cell(cell)
        config = cell.load_config()
        assert config.training.init_from == str(tmp_path / f"detection/burn-in/seed{cell.seed}/last.pt")
        assert config.training.steps == 9
        assert (config.target is None) == (cell.weighting is None)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_configurations_of_the_tasks_can_be_used(name, tmp_path):
    task = TASKS[name]
    for cell in Grid([task], ["sum", "gh++:adaptive"], tmp_path, CONFIGS, tmp_path, seeds=1).cells():
        check_cell(cell)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "letters"], ["no task 'letters'", "digits", "--config FILE"]),
        (["--weightings", "sum,ghpp"], ["unknown weighting 'ghpp'", "gh++:adaptive"]),
        (["--scope", "some"], ["scope is one of shared, all"]),
        (["--seeds", "0"], ["seeds must be at least 1"]),
        (["--lambdas", "0:7:1"], ["expected START:STOP:STEP"]),
        (["training.seed=3"], ["training.seed is set by the comparison", "--seeds"]),
        (["--metric", "target/R@0"], ["training.best_metric is 'target/R@0'"]),
        (["optimizer.rate=1"], ["unknown key optimizer.rate"]),
    ],
)
def test_a_mistake_gets_one_line(arguments, words, config, tmp_path, capsys):
    own = [] if "--task" in arguments else ["--config", str(config), "--engine", "retrieval"]
    assert compare.main([*own, "--output", str(tmp_path / "output"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words)
    assert not (tmp_path / "output").exists()


def test_a_task_has_its_own_engine_and_metric(capsys):
    with pytest.raises(SystemExit):
        compare.main(["--task", "digits", "--metric", "target/accuracy"])
    assert "belong to --config" in capsys.readouterr().err


def test_a_weighting_that_is_named_twice_is_run_once():
    assert compare._names("sum, gh,sum,") == ["sum", "gh"]
