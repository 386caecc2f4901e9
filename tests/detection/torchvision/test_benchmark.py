"""The steps that the benchmark compares do what they are named after; how long they take is not tested."""

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision", reason="needs pip install 'gh_downstream[detection]'")

from gh_downstream import GH, GHPlusPlusOfficial, Harmonizer, Sum
from gh_downstream.detection.torchvision.benchmark import adaptation_steps
from gh_downstream.detection.torchvision.config import DetectionConfig
from gh_downstream.detection.torchvision.data import StepBatches
from gh_downstream.training import load_config

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs" / "detection" / "torchvision"


@pytest.fixture(scope="module")
def overrides(mini_tree):
    """Small steps, whose gradient is not clipped."""
    roots = [f"{name}.root={mini_tree}" for name in ("source", "target", "validation.foggy")]
    sizes = ("min_size=64", "max_size=128", "rpn_post_nms_top_n=20", "roi_batch_size=8")
    return [*roots, *(f"detector.{size}" for size in sizes), "optimizer.clip_norm=null", "batch_size=1"]


@pytest.fixture(scope="module")
def example(overrides):
    """A configuration, and its steps, whose gradients conflict."""
    for seed in range(10):
        config = load_config(DetectionConfig, CONFIGS / "mini.yaml", [*overrides, f"training.seed={seed}"])
        workload = adaptation_steps(config)
        if harmonized(workload, config, GH()).conflict:
            return workload, config
    raise AssertionError("no conflict in ten seeds")


def harmonized(workload, config, weighting, scope="shared"):
    """Run a Harmonizer on the batch, the weights and the random numbers of the steps, and nothing else of a step."""
    batch = StepBatches(config.source.load(), config.target.load(), 1, config.flip, config.training.seed)(0, 0, 1)
    del batch["file_names"]
    workload.reset()
    workload.model.harmonize_features = None
    sides = workload.model(**batch)
    harmonizer = Harmonizer(weighting, workload.model.shared, model=workload.model, scope=scope)
    return harmonizer.backward({side: sum(losses.values()) for side, losses in sides.items()})


def gradients(workload):
    return {name: parameter.grad.clone() for name, parameter in workload.model.named_parameters()}


def after(workload, step):
    workload.run(step)
    return gradients(workload)


def test_every_step_has_a_finite_gradient_and_begins_at_the_same_state(example):
    workload, _ = example
    first = after(workload, "plain sum")
    for step in [*workload.steps, *workload.steps]:  # The second time the period holds its weights.
        found = after(workload, step)
        assert all(gradient.isfinite().all() for gradient in found.values()), step
    again = after(workload, "plain sum")
    assert all(torch.equal(gradient, again[name]) for name, gradient in first.items())


@pytest.mark.parametrize(
    ("start", "weighting", "scope"),
    [
        ("plain sum", Sum(), "shared"),
        ("GH, exact", GH(), "shared"),
        ("GH++ as published", GHPlusPlusOfficial(), "all"),
    ],
)
def test_a_step_has_the_gradient_of_the_harmonizer(example, start, weighting, scope):
    workload, config = example
    (step,) = (name for name in workload.steps if name.startswith(start))
    found = after(workload, step)
    harmonized(workload, config, weighting, scope)
    torch.testing.assert_close(found, gradients(workload), rtol=1e-4, atol=1e-6)


def test_only_the_published_recipe_weighs_private_parameters(example):
    workload, _ = example
    shared = tuple(f"{module}." for module in workload.model.shared)
    plain = after(workload, "plain sum")
    private = [name for name in plain if not name.startswith(shared)]
    for step in workload.steps:
        found = after(workload, step)
        kept = all(torch.allclose(found[name], plain[name], rtol=1e-4, atol=1e-6) for name in private)
        assert kept == ("as published" not in step), step
        assert any(not torch.equal(found[name], plain[name]) for name in plain) == (step != "plain sum"), step


def test_refuses_what_it_cannot_measure(overrides, mini_tree):
    alone = load_config(DetectionConfig, CONFIGS / "mini-burn-in.yaml", [f"source.root={mini_tree}"])
    with pytest.raises(ValueError, match="needs target and alignment"):
        adaptation_steps(alone)
    half = load_config(DetectionConfig, CONFIGS / "mini.yaml", [*overrides, "training.mixed_precision=bf16"])
    with pytest.raises(ValueError, match="mixed_precision=no"):
        adaptation_steps(half)


def test_the_tool_prints_and_writes_the_table(tmp_path, overrides, example, capsys, monkeypatch):
    @functools.wraps(adaptation_steps)  # which is what other processes call, whatever stands here
    def fewer(config):
        workload = adaptation_steps(config)
        return dataclasses.replace(workload, steps={name: workload.steps[name] for name in names})

    names = list(example[0].steps)[:3]
    monkeypatch.setattr("gh_downstream.detection.torchvision.benchmark.adaptation_steps", fewer)
    main = tool()
    monkeypatch.setitem(main.__globals__, "make_mini_data", lambda engine: None)  # a smaller tree is there
    assert main(["--rounds", "2", "--output", str(tmp_path), *overrides]) == 0
    printed = capsys.readouterr().out
    table = json.loads((tmp_path / "torchvision-mini.json").read_text())
    assert [row[0] for row in table["rows"]] == names
    assert table["rows"][0][2:] == [1, 1, 1, 0]
    assert "batch_size=1" in table["header"][-1]
    assert "64 x 128 pixels" in printed
    assert (tmp_path / "torchvision-mini.md").exists()


def test_a_mistake_is_one_line(tmp_path, capsys):
    assert tool()(["--config", str(tmp_path / "none.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def tool():
    spec = importlib.util.spec_from_file_location("benchmark_tool", ROOT / "tools" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main
