"""Weights & Biases, the real library, offline: what it writes is read back from its files."""

import json
import os
import signal
import struct
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from gh_downstream.training import load_config, read_metrics
from gh_downstream.training.config import ExperimentConfig, config_dict
from gh_downstream.training.stopping import Stopped
from tests.ranks import CONTEXT
from tests.training import toy
from tests.training.test_stopping import Signalling


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing is sent anywhere; accelerate keeps one precision for the process."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def records(path):
    """The records of a file of wandb: protocol buffers, in blocks as those of LevelDB's logs."""
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, content = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 2**15 - position % 2**15
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if position + 7 + length > len(data):
            return
        content += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # The whole of a record, or the last part of one.
            yield Record.FromString(content)
            content = b""


def read_run(folder):
    """Id, project, configuration, metrics by step and exit code of the last start, once wandb has written them."""
    (path,) = (folder / "wandb" / "latest-run").glob("*.wandb")
    for _ in range(600):
        if any(record.WhichOneof("record_type") == "exit" for record in records(path)):
            break
        time.sleep(0.1)
    found = {"steps": {}, "exit": None, "preempting": False}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            items = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            found |= {"id": record.run.run_id, "project": record.run.project, "name": record.run.display_name}
            found["config"] = {key: value for key, value in items.items() if not key.startswith("_")}
        elif kind == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            assert record.history.step.num == items["_step"]
            found["steps"][items["_step"]] = {key: value for key, value in items.items() if key[0] != "_"}
        elif kind == "preempting":
            found["preempting"] = True
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def lines_by_step(folder):
    merged = defaultdict(dict)
    for line in read_metrics(folder / "metrics.jsonl"):
        merged[line["step"]] |= {name: value for name, value in line.items() if name != "step"}
    return merged


@pytest.mark.slow
def test_metrics_by_step_and_the_configuration(tmp_path):
    pytest.importorskip("wandb")
    settings = toy.config(tmp_path, wandb="streets", workers=1)
    toy.trainer(settings).run()
    run = read_run(tmp_path)
    assert run["steps"] == lines_by_step(tmp_path)
    assert {"mse", "score", "gh/weight/task", "gh/conflict_rate"} <= run["steps"][4].keys()
    assert run["config"] == config_dict(settings)
    assert load_config(ExperimentConfig, tmp_path / "config.yaml") == settings
    assert (run["project"], run["name"], run["exit"]) == ("streets", str(tmp_path), 0)


def test_a_killed_run_goes_on_as_the_same_one(tmp_path):
    pytest.importorskip("wandb")
    for kill_at, code in (("replaced last.pt:2", -signal.SIGKILL), (None, 0)):
        process = CONTEXT.Process(target=toy.run, args=(tmp_path, kill_at), kwargs={"wandb": "streets"})
        process.start()
        process.join()
        assert process.exitcode == code
    starts = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(starts) == 2
    run = read_run(tmp_path)
    assert {start.name.rpartition("-")[2] for start in starts} == {run["id"]} == {(tmp_path / "wandb.id").read_text()}
    assert run["steps"] == lines_by_step(tmp_path)
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).unlink()
    toy.trainer(toy.config(tmp_path, wandb="streets", steps=2)).run()
    assert read_run(tmp_path)["id"] == (tmp_path / "wandb.id").read_text() != run["id"]


def test_a_run_that_fails_is_failed(tmp_path):
    pytest.importorskip("wandb")
    with pytest.raises(ValueError, match="mse is nan"):
        toy.trainer(toy.config(tmp_path, wandb="streets"), batches=toy.Batches(broken_step=3)).run()
    run = read_run(tmp_path)
    assert run["exit"] == 1
    assert list(run["steps"]) == [0, 2]


def test_a_run_that_a_signal_stops_is_preempted_and_then_finished(tmp_path):
    pytest.importorskip("wandb")
    with pytest.raises(Stopped):
        toy.trainer(toy.config(tmp_path, wandb="streets"), batches=Signalling(4, signal.SIGTERM)).run()
    run = read_run(tmp_path)
    assert (run["exit"], run["preempting"]) == (143, True)
    toy.trainer(toy.config(tmp_path, wandb="streets")).run()
    resumed = read_run(tmp_path)
    assert (resumed["id"], resumed["exit"], resumed["preempting"]) == (run["id"], 0, False)


def test_only_the_main_process_logs(ranks, tmp_path):
    pytest.importorskip("wandb")
    ranks(toy.run_rank, tmp_path, {"weighting": "none"}, False, {"wandb": "streets", "steps": 2}, group=False)
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1
    assert read_run(tmp_path)["steps"] == lines_by_step(tmp_path)


def test_asked_for_and_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"^training\.wandb needs wandb: pip install wandb$"):
        toy.trainer(toy.config(tmp_path / "new", wandb="streets"))
    assert not Path(tmp_path / "new").exists()
    toy.trainer(toy.config(tmp_path / "new", steps=1)).run()


def test_wandb_that_cannot_begin_is_one_line(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # It reads its settings once.
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ValueError, match=r"(?i)^training\.wandb: .*api.key.*; log in, or set WANDB_MODE=offline$"):
        toy.trainer(toy.config(tmp_path, wandb="streets")).run()
    wandb.teardown()
