"""Configurations: layers, types, and what is said about mistakes."""

import os
import re
from dataclasses import dataclass, field

import pytest
import torch

from gh_downstream.training import ConfigError, ExperimentConfig, TrainingConfig, config_hash, load_config


@dataclass
class Part:
    """A section, as workloads have them."""

    width: int = 8
    sizes: list[int] = field(default_factory=lambda: [1, 2])


@dataclass(kw_only=True)
class Workload(ExperimentConfig):
    """A configuration of a workload."""

    data: str
    fast: bool = True
    part: Part = field(default_factory=Part)
    parts: dict[str, Part] = field(default_factory=dict)


@pytest.fixture
def write(tmp_path):
    def write(text="output: out\ndata: some\ntraining: {steps: 10}\n", name="config.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_file_then_overrides(write):
    path = write("output: out/${data}\ndata: some\ntraining: {steps: 10}\npart: {width: 3}\nparts: {a: {width: 5}}")
    config = load_config(Workload, path, ["optimizer.lr=1e-3", "training.steps=20", "harmonization.weighting=gh++"])
    assert isinstance(config, Workload)
    assert (config.output, config.part, config.parts["a"].width) == ("out/some", Part(width=3), 5)
    assert (config.optimizer.lr, config.training.steps, config.harmonization.weighting) == (1e-3, 20, "gh++")
    assert config.optimizer.momentum == 0.9


def test_bases_lie_below_the_file_that_names_them(write):
    write("training: {steps: 10, seed: 1}\noutput: low\ndata: low", "deep/base.yaml")
    write("_base_: base.yaml\ntraining: {seed: 2}\noutput: middle", "deep/middle.yaml")
    config = load_config(Workload, write("_base_: deep/middle.yaml\noutput: top"), ["training.seed=3"])
    assert (config.output, config.data, config.training.steps, config.training.seed) == ("top", "low", 10, 3)


def test_of_several_bases_the_later_wins(write):
    write("training: {steps: 10, seed: 1}\noutput: pair\ndata: pair", "pair.yaml")
    write("training: {steps: 20}\ndata: model", "recipes/model.yaml")
    config = load_config(Workload, write("_base_: [pair.yaml, recipes/model.yaml]\ntraining: {seed: 3}"))
    assert (config.output, config.data, config.training.steps, config.training.seed) == ("pair", "model", 20, 3)


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        ("optimizer: {rate: 1}", None, r"config\.yaml: unknown key optimizer\.rate; the keys there are name, lr, mom"),
        ("outptu: x", None, r"config\.yaml: unknown key outptu; the keys there are output, training, optimizer, harm"),
        ("", "training.step=3", r"override 'training\.step=3': unknown key training\.step; the keys there are steps,"),
        ("", "optimizer.lr=fast", r"override .*: optimizer\.lr: Value 'fast'"),
        ("optimizer: 3", None, r"config\.yaml: optimizer: a section with keys of its own, got 3"),
        ("fast: 5", None, r"config\.yaml: fast: true or false, got 5"),
        ("", "fast=-1", r"override 'fast=-1': fast: true or false, got -1"),
        ("", "optimizer.nesterov=2", r"override .*: optimizer\.nesterov: true or false, got 2"),
        ("", "part=3", r"override 'part=3': part: a section with keys of its own, got 3"),
        ("parts: {a: 3}", None, r"config\.yaml: parts\.a: "),
        ("optimizer: {milestones: 3}", None, r"config\.yaml: optimizer\.milestones: "),
        ("", "optimizer.lr=-1", r"override '.*': optimizer: lr must be above 0, got -1"),
        ("", "training.steps=0", r"override '.*': training: steps must be at least 1, got 0"),
        ("", "training.ema=1", r"override '.*': training: ema must be above 0 and below 1, got 1\.0"),
        ("", "optimizer.lr=nan", r"override '.*': optimizer: lr must be finite, got nan"),
        ("", "optimizer.clip_norm=.inf", r"override '.*': optimizer: clip_norm must be finite, got inf"),
        ("", "optimizer.lr=true", r"override .*: optimizer\.lr: Value 'True' of type 'bool'"),
        ("", "training.seed=4294967296", r"training: seed must be at least 0 and below 4294967296, got 4294967296"),
        (
            "optimizer: {schedule: cosine, warmup_steps: 11}",
            None,
            r"config\.yaml: optimizer\.warmup_steps=11 is longer",
        ),
        ("", "training.mixed_precision=fp8", r"training: mixed_precision is one of no, bf16, fp16, got 'fp8'"),
        ("", "harmonization.weighting=ggh", r"harmonization: weighting 'ggh': there are sum, gh, gh\+\+"),
        ("harmonization: {weighting: 'gh++:2'}", None, r"harmonization: .*'gh\+\+:2'.* in \[0, 1\]"),
        ("harmonization: {measure: features, period: 2}", None, r"harmonization: .*period.* measure=parameters"),
        (
            "harmonization: {tasks: {a: [b], c: [d]}, measure: features}",
            None,
            r"harmonization: .*tasks.* measure=param",
        ),
        ("harmonization: {tasks: {a: [b]}}", None, r"harmonization: tasks takes two or more tasks"),
        ("", "harmonization.tasks={a: [], c: []}", r"harmonization: tasks: only one can take"),
        ("", "harmonization.tasks.a=loss_*", r"override .*: harmonization\.tasks\.a: "),
        ("optimizer: {milestones: [5, 3]}", None, r"optimizer: milestones must rise"),
        ("optimizer: {milestones: [5], schedule: cosine}", None, r"optimizer: milestones need schedule=step"),
        ("part: {width: '${nothing}'}", None, r"config\.yaml: part\.width: Interpolation key 'nothing' not found"),
        ("part: {width: [}", None, r"config\.yaml: not a YAML file: .*line"),
        ("data: " + 2000 * "[", None, r"config\.yaml: nested too deeply"),
        ("data: " + 400 * "[" + 400 * "]", None, r"config\.yaml: "),
        ("", f"data={2000 * '{a: '}", r"override .*: nested too deeply"),
        ("data: twice", None, r"config\.yaml: not a YAML file: duplicate key data in line 4"),
        ("data: \x01", None, r"config\.yaml: not a YAML file: it has other characters than text"),
        ("parts: {a: {width: '${oc.env:HOME}'}}", None, r"config\.yaml: .*oc\.env:HOME.*another key alone"),
        ("", "data=${oc.env:HOME}", r"override .*another key alone"),
        ("part: {width: '${${data}:HOME}'}", None, r"another key alone"),
        ("parts: {'${oc.env:HOME}': {}}", None, r"another key alone"),
        ("_base_: 5", None, r"config\.yaml: _base_ is a file or a list of files, got 5"),
        ("_base_: [a.yaml, [b.yaml]]", None, r"config\.yaml: _base_ is a file or a list of files, got \["),
        ("_base_: .", None, r"no such file, named as _base_"),
        ("- 1", None, r"config\.yaml: not a mapping"),
        ("_base_: other.yaml", None, r"other\.yaml: no such file, named as _base_ in .*config\.yaml"),
        ("_base_: config.yaml", None, r"config\.yaml: the _base_ files go round"),
        ("", "steps", r"override 'steps': expected KEY=VALUE"),
        ("", "=3", r"override '=3': expected KEY=VALUE"),
        ("", "training.steps=[", r"override 'training\.steps=\[': "),
    ],
)
def test_a_mistake_gets_one_line_with_file_and_key(write, text, override, message):
    valid = "" if text.startswith("-") else "output: out\ndata: some\ntraining: {steps: 10}\n"
    with pytest.raises(ConfigError) as caught:
        load_config(Workload, write(valid + text), [override] if override else [])
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["no", "off", "on", "yes", "010", "1:30", "2024-01-01", "0b1", "1_000", "NO", "0x"])
def test_a_word_stays_as_it_is_written(write, word):
    """YAML 1.1 makes false, 8, 90 and a date of these."""
    overrides = [f"data={word}", f"training.init_from={word}", f"harmonization.tasks={{{word}: [a], b: [{word}]}}"]
    config = load_config(Workload, write(f"output: {word}\ntraining: {{steps: 10}}"), overrides)
    assert (config.output, config.data, config.training.init_from) == (word, word, word)
    assert config.harmonization.tasks == {word: ["a"], "b": [word]}


def test_words_are_read_by_the_type_of_the_key(write):
    path = write(
        "output: out\ndata: some\ntraining: {steps: 010, mixed_precision: no}\noptimizer: {lr: 1e-3, gamma: 1}"
    )
    config = load_config(Workload, path, ["training.mixed_precision=no", "optimizer.weight_decay=2E-2", "fast=off"])
    assert (config.training.steps, config.training.mixed_precision, config.fast) == (10, "no", False)
    assert (config.optimizer.lr, config.optimizer.gamma, config.optimizer.weight_decay) == (0.001, 1.0, 0.02)


def test_a_file_that_is_no_configuration_is_not_shown(write, tmp_path):
    write("root:x:0:0:secret\nother: [secret\n", "passwords")
    write("a secret of\nseveral lines\n", "text")
    for name, message in (("passwords", r"passwords: not a YAML file: .* in line"), ("text", "text: not a mapping")):
        with pytest.raises(ConfigError, match=message) as caught:
            load_config(Workload, write(f"_base_: {name}\noutput: x"))
        assert "secret" not in str(caught.value)


def test_a_pipe_is_not_waited_for(write, tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", write("_base_: pipe.yaml")):
        with pytest.raises(ConfigError, match=r"pipe\.yaml: no such file"):
            load_config(Workload, path)


def test_what_is_missing_is_named(write, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.yaml: no value for data, training\.steps: set it there"):
        load_config(Workload, write("output: x\ntraining: {seed: 1}"))
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_config(Workload, tmp_path / "nowhere.yaml")


def test_hash_names_the_content_and_not_the_place(write):
    path = write()
    one, moved, other = (load_config(Workload, path, [o]) for o in ("data=some", "output=elsewhere", "optimizer.lr=1"))
    assert config_hash(one) == config_hash(moved) != config_hash(other)
    assert re.fullmatch("[0-9a-f]{12}", config_hash(one))


def test_hash_tells_the_order_of_the_tasks(write):
    both = [["alignment", "[loss_mmd]"], ["task", "[]"]]
    hashes = []
    for order in (both, both[::-1]):
        text = "harmonization: {tasks: {" + ", ".join(f"{task}: {patterns}" for task, patterns in order) + "}}"
        config = load_config(Workload, write(f"{text}\ndata: x\noutput: y\ntraining: {{steps: 3}}"))
        assert list(config.harmonization.tasks) == [task for task, _ in order]
        hashes.append(config_hash(config))
    assert hashes[0] != hashes[1]


def test_workers_are_the_cores_of_a_process_unless_they_are_said(monkeypatch):
    threads, cores = torch.get_num_threads(), os.cpu_count()
    try:
        torch.set_num_threads(3)  # its share, where several trainings run at a time
        assert TrainingConfig(steps=1).loaders == 3
        torch.set_num_threads(64)
        assert TrainingConfig(steps=1).loaders == 8
    finally:
        torch.set_num_threads(threads)
    for processes in (2, cores, cores + 1):  # of a launcher, which gives each of them one thread
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert TrainingConfig(steps=1).loaders == min(8, cores // processes)
    assert [TrainingConfig(steps=1, workers=number).loaders for number in (0, 12)] == [0, 12]


def test_the_override_that_is_wrong_is_named_and_no_other(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("output: out\ntraining: {steps: 3, workers: -1}\n")
    for wrong in ("optimizer.lr=-1", "optimizer={lr: -1}", "optimizer.schedule=none"):
        with pytest.raises(ConfigError, match=rf"^override '{re.escape(wrong)}': optimizer: "):
            load_config(ExperimentConfig, path, ["training.workers=1", "optimizer.gamma=0.5", wrong, "output=new"])
    with pytest.raises(ConfigError, match=r"run\.yaml: training: workers must be"):
        load_config(ExperimentConfig, path, ["optimizer.lr=1", "training.steps=5"])
