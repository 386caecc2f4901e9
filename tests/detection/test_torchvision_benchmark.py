"""The steps that the benchmark compares do what they are named after; how long they take is not tested."""

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

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "detection" / "torchvision"


@pytest.fixture(scope="module")
def overrides(mini_tree):
    roots = [f"{name}.root={mini_tree}" for name in ("source", "target", "validation.foggy")]
    return [*roots, "detector.min_size=64", "detector.max_size=128", "optimizer.clip_norm=null", "batch_size=1"]


@pytest.fixture(scope="module")
def config(overrides):
    return load_config(DetectionConfig, CONFIGS / "mini-gh++.yaml", overrides)


@pytest.fixture(scope="module")
def workload(config):
    return adaptation_steps(config)


def gradients(workload, variant):
    workload.run(variant)
    return {name: parameter.grad.clone() for name, parameter in workload.model.named_parameters()}


def by_hand(workload, config, weighting, scope="shared"):
    """Gradient of a Harmonizer on the batch, the weights and the random numbers of the steps."""
    batch = StepBatches(config.source.load(), config.target.load(), 1, config.flip, config.training.seed)(0, 0, 1)
    del batch["file_names"]
    workload.reset()
    workload.model.harmonize_features = None
    sides = workload.model(**batch)
    harmonizer = Harmonizer(weighting, workload.model.shared, model=workload.model, scope=scope)
    harmonizer.backward({side: sum(losses.values()) for side, losses in sides.items()})
    return {name: parameter.grad.clone() for name, parameter in workload.model.named_parameters()}


def variant(workload, start):
    (name,) = (name for name in workload.steps if name.startswith(start))
    return name


def private(workload):
    return {
        name
        for name, _ in workload.model.named_parameters()
        if not name.startswith(tuple(f"{module}." for module in workload.model.shared))
    }


def test_every_step_has_a_finite_gradient_and_begins_at_the_same_weights(workload):
    plain = next(iter(workload.steps))
    first = gradients(workload, plain)
    for name in [*workload.steps, *workload.steps]:  # The second time the period holds its weights.
        found = gradients(workload, name)
        assert all(gradient.isfinite().all() for gradient in found.values()), name
        assert any(gradient.any() for gradient in found.values()), name
    again = gradients(workload, plain)
    assert all(torch.equal(gradient, again[name]) for name, gradient in first.items())


@pytest.mark.parametrize(
    ("start", "weighting", "scope"),
    [
        ("plain sum", Sum(), "shared"),
        ("GH, exact", GH(), "shared"),
        ("GH++ as published", GHPlusPlusOfficial(), "all"),
    ],
)
def test_a_step_has_the_gradient_of_the_harmonizer(workload, config, start, weighting, scope):
    found = gradients(workload, variant(workload, start))
    expected = by_hand(workload, config, weighting, scope)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_published_recipe_weighs_private_parameters_and_the_others_do_not(workload):
    plain = gradients(workload, "plain sum")
    for name in workload.steps:
        found = gradients(workload, name)
        kept = all(torch.allclose(found[key], plain[key], rtol=1e-4, atol=1e-6) for key in private(workload))
        assert kept == (name != variant(workload, "GH++ as published")), name


def test_refuses_what_it_cannot_measure(overrides, mini_tree):
    alone = load_config(DetectionConfig, CONFIGS / "mini-source-only.yaml", [f"source.root={mini_tree}"])
    with pytest.raises(ValueError, match="needs target and alignment"):
        adaptation_steps(alone)
    half = load_config(DetectionConfig, CONFIGS / "mini-gh.yaml", [*overrides, "training.mixed_precision=bf16"])
    with pytest.raises(ValueError, match="mixed_precision=no"):
        adaptation_steps(half)


def test_the_tool_prints_and_writes_the_table(tmp_path, overrides, workload, capsys):
    main = tool()
    # One variant in its own process takes seconds: as many threads as here, one round more than the least.
    assert main(["--rounds", "2", "--output", str(tmp_path), *overrides]) == 0
    printed = capsys.readouterr().out
    table = json.loads((tmp_path / "mini-gh++.json").read_text())
    assert [row[0] for row in table["rows"]] == list(workload.steps)
    assert table["rows"][0][2:] == [1, 1, 1, 0]
    assert "batch_size=1" in table["header"][-1]
    assert "64 x 128 pixels" in printed
    assert (tmp_path / "mini-gh++.md").exists()


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
