"""Kills of trainings at exact points, and the check that what is resumed ends with the same bits.

As a tool, ``python -m tests.kill --kills 100`` spreads so many kills over the trainings of our own loop.
"""

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from gh_downstream.comparison.engines import find_engine
from gh_downstream.detection.data.mini_cityscapes import make_mini_cityscapes
from gh_downstream.retrieval.data import make_mini_scenes
from gh_downstream.training import load_checkpoint, read_metrics
from gh_downstream.training.configs import find_config
from tests.ranks import CONTEXT, preload

SHORT = ["training.steps=6", "training.evaluate_every=4", "training.checkpoint_every=3", "training.workers=0"]
SHORT += ["training.log_every=1", "harmonization.weighting=gh++", "optimizer.warmup_steps=0"]
ENGINES = {
    "classification": (
        "classification/digits",
        ["batch_size=8", "method=cdan", "training.best_metric=target/accuracy"],
    ),
    "retrieval": (
        "retrieval/mini",
        [
            "batch_size=16",
            "encoder_options={width: 32, layers: 1}",
            "training.best_metric=target/image_to_text_R@1",
            *(
                f"{key}.path={{data}}/scenes/{path}"
                for key, path in (
                    ("source", "source/train.csv"),
                    ("target", "target/train.jsonl"),
                    ("validation.source", "source/test.csv"),
                    ("validation.target", "target/test.jsonl"),
                )
            ),
        ],
    ),
    "native": (
        "detection/native/mini",
        [
            *(f"{key}.root={{data}}/streets" for key in ("source", "target", "validation.foggy")),
            *("training.init_from=null", "training.best_metric=foggy/ap50", "optimizer.milestones=[5]"),
        ],
    ),
}
"""Small trainings of every engine of our own loop: a configuration and what is changed in it."""


def make_data(folder):
    """Draw what they are trained on."""
    make_mini_scenes(folder / "scenes", train=60, target=40, val=8, test=24)
    make_mini_cityscapes(folder / "streets", train=4, val=2, height=64, width=128)


def arm(point):
    """Have this process kill itself at a point ``EVENT:COUNT``: the so manieth event that fits a wildcard.

    Events are ``write NAME`` (half of what is written is), ``sync``, ``replace NAME`` and ``replaced NAME`` (before a
    file takes its place, and after).

    Returns:
        The number of events so far, by their names.
    """
    pattern, _, count = point.rpartition(":")
    events, one_at_a_time = Counter(), threading.Lock()  # Checkpoints are written in a thread of their own.

    def happens(event, half=lambda: None):
        with one_at_a_time:
            events[event] += 1
            fitting = sum(n for e, n in events.items() if fnmatchcase(e, pattern))
            if fnmatchcase(event, pattern) and fitting == int(count):
                half()
                os.kill(os.getpid(), signal.SIGKILL)

    class Watched:
        """A file that is written to."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            def half():
                self.file.write(data[: len(data) // 2])
                self.file.flush()

            happens(f"write {Path(self.file.name).name}", half)
            return self.file.write(data)

    opened, replace, sync = Path.open, os.replace, os.fsync

    def open_watched(path, mode="r", *arguments, **options):
        file = opened(path, mode, *arguments, **options)
        return Watched(file) if mode[0] in "wa" and "+" not in mode else file

    def replaced(old, new):
        happens(f"replace {Path(new).name}")
        replace(old, new)
        happens(f"replaced {Path(new).name}")

    def synced(descriptor):
        happens("sync")
        sync(descriptor)

    Path.open, os.replace, os.fsync = open_watched, replaced, synced
    return events


def train(name, data, output, point, counted=None):
    """Train with an engine, as the entry of a child process; the number of events goes into a file."""
    torch.set_num_threads(1)
    engine = find_engine(name)
    config, changes = ENGINES[name]
    changes = [change.replace("{data}", str(data)) for change in changes]
    settings = engine.load(find_config(config), [*SHORT, *changes, f"output={output}"])
    events = arm(point)
    engine.train(settings)
    if counted is not None:
        counted.write_text(json.dumps(events))


def exit_code(function, *arguments, **options):
    """The exit code of a function in a process of its own."""
    process = CONTEXT.Process(target=function, args=arguments, kwargs=options)
    process.start()
    process.join()
    return process.exitcode


def flat(state):
    """All tensors and scalars in a checkpoint, by path."""
    if isinstance(state, dict):
        return {f"{key}/{path}": value for key, child in state.items() for path, value in flat(child).items()}
    if isinstance(state, (list, tuple)):
        return flat(dict(enumerate(state)))
    return {"": state}


@contextmanager
def held(folder):
    """Have another process be the one writer of a folder."""
    code = f"from gh_downstream.files import only_writer\nwith only_writer({str(folder)!r}): print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def lines_of(folder, having="step"):
    """What a training logged in lines that have a key, but for its speed."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if having in line]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def assert_same_run(folder, reference):
    """Assert that two folders hold the same training."""
    for name in ("last.pt", "best.pt"):
        one, other = (flat(load_checkpoint(path / name)) for path in (folder, reference))
        assert one.keys() == other.keys()
        for key, value in one.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other[key]), key
            elif not key.startswith(("config/output", "config/training/workers")):
                assert value == other[key], key
    assert lines_of(folder) == lines_of(reference)
    results = [path / "results.json" for path in (folder, reference)]
    assert results[0].exists() == results[1].exists()
    assert not results[0].exists() or results[0].read_text() == results[1].read_text()
    assert not list(folder.glob(".*.tmp"))


def kill_and_resume(train, folder, kills, generator, compare=assert_same_run):
    """Kill trainings at random events, each kind alike, and compare what is resumed with the one that is left alone.

    Args:
        train: Function of ``(output, point, counted)``, of a module.
        folder: For the trainings.
        kills: How many.
        generator: Draws the points.
        compare: Asserts that two folders hold the same training.
    """
    reference, counted = folder / "whole", folder / "events"
    assert exit_code(train, reference, "*:0", counted) == 0
    events, done = json.loads(counted.read_text()), 0
    for attempt in itertools.count():
        if done >= kills:
            return
        output = folder / f"killed{attempt}"
        drawn = generator.choices(list(events), k=min(2, kills - done))
        points = [f"{event}:{generator.randint(1, events[event])}" for event in drawn]
        for point in points:
            code = exit_code(train, output, point)
            assert code in (0, -signal.SIGKILL), code
            done += code != 0
        assert exit_code(train, output, "*:0") == 0, points
        compare(output, reference)
        print(f"{folder.name}: killed at {', '.join(points)}: the same bits ({done} of {kills})", flush=True)


def main():
    """The tool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("engines", nargs="*", default=list(ENGINES))
    chosen = parser.parse_args()
    preload()
    generator = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder))
        for k, name in enumerate(chosen.engines):
            share = (chosen.kills + k) // len(chosen.engines)
            kill_and_resume(EngineRun(name, Path(folder)), Path(folder) / name, share, generator)


class EngineRun:
    """A training of an engine on the data in a folder."""

    def __init__(self, name, data):
        self.name, self.data = name, data

    def __call__(self, output, point, counted=None):
        train(self.name, self.data, output, point, counted)


if __name__ == "__main__":
    main()
