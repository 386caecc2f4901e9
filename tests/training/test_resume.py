"""Real processes, really killed: what they leave behind, and what the resumed ones make of it."""

import signal
import time

import pytest

from gh_downstream.training import load_checkpoint, read_metrics
from tests import kill
from tests.ranks import CONTEXT
from tests.training import toy

pytestmark = pytest.mark.slow

SETTINGS = {"best_metric": "score"}
CHAIN = [
    "write metrics.jsonl:1",  # before there is a checkpoint, in the middle of a line of metrics
    "write .last.pt.tmp:9",  # in the middle of writing the first checkpoint
    "replaced last.pt:1",  # just after the first checkpoint has taken its place
    "sync:2",
    "write .best.pt.tmp:9",  # in an evaluation, in the middle of writing the best weights
    "replaced previous.pt:1",  # between the places of two checkpoints
    "write metrics.jsonl:2",  # in the line of an evaluation
    "replaced best.pt:1",
    "replaced last.pt:2",
    "write .last.pt.tmp:99",  # in the middle of overwriting a checkpoint
]


def start(*arguments, **settings):
    process = CONTEXT.Process(target=toy.run, args=arguments, kwargs=settings)
    process.start()
    return process


def finish(*arguments, **settings):
    process = start(*arguments, **settings)
    process.join()
    return process.exitcode


def tensorboard_steps(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    # A line that a resumed training makes up for has no speed.
    tags = set(events.Tags()["scalars"]) - {"images_per_second"}
    return {tag: [event.step for event in events.Scalars(tag)] for tag in tags}


def assert_same_run(folder, reference):
    kill.assert_same_run(folder, reference)
    assert tensorboard_steps(folder) == tensorboard_steps(reference)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    assert finish(folder, **SETTINGS) == 0
    return folder


def test_reference_trains_and_keeps_the_best(reference):
    lines = read_metrics(reference / "metrics.jsonl")
    scores = {line["step"]: line["score"] for line in lines if "score" in line}
    assert sorted(scores) == [0, 4, 8, 12, 16, 18]
    del scores[0]  # which is what it starts from
    best = load_checkpoint(reference / "best.pt")
    assert best["step"] == max(scores, key=scores.get) != 18
    assert best["metrics"]["score"] == max(scores.values())
    assert [line["step"] for line in lines if "total" in line] == list(range(2, 20, 2))


def test_killed_again_and_again_ends_with_the_same_bits(tmp_path, reference):
    for point in CHAIN:
        assert finish(tmp_path, kill_at=point, **SETTINGS) == -signal.SIGKILL, point
    assert finish(tmp_path, workers=2, **SETTINGS) == 0
    assert_same_run(tmp_path, reference)


def test_killed_from_outside_ends_with_the_same_bits(tmp_path, reference):
    process = start(tmp_path, **SETTINGS)
    while not (tmp_path / "last.pt").exists():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert finish(tmp_path, **SETTINGS) == 0
    assert_same_run(tmp_path, reference)


@pytest.mark.parametrize(
    ("harmonization", "ema"),
    [
        ({"period": 3, "warmup_steps": 2, "scope": "all"}, None),
        ({"period": 4, "tasks": {"fit": ["mse"], "shrink": ["l1"], "align": ["domain"]}}, None),
        ({"weighting": "none"}, 0.9),
    ],
)
def test_other_states_resume_too(tmp_path, harmonization, ema):
    optimizer = {"name": "adamw", "clip_norm": 1.0}
    settings = {"harmonization": harmonization, "optimizer": optimizer, "ema": ema, **SETTINGS}
    assert finish(tmp_path / "whole", **settings) == 0
    assert finish(tmp_path / "killed", kill_at="replace last.pt:3", **settings) == -signal.SIGKILL
    assert load_checkpoint(tmp_path / "killed" / "previous.pt")["step"] == 4
    assert finish(tmp_path / "killed", **settings) == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
