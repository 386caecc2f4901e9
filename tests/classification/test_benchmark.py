"""The steps whose costs are measured are those of the trainer, and are counted exactly; no time is tested."""

import json
import math
from pathlib import Path

import benchmark
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("torchvision", reason="needs pip install 'gh_downstream[classification]'")
pytest.importorskip("timm", reason="needs pip install 'gh_downstream[classification]'")
pytest.importorskip("sklearn", reason="needs pip install 'gh_downstream[classification]'")

from gh_downstream import GH, GHPlusPlus, GHPlusPlusOfficial, Harmonizer, Sum
from gh_downstream.classification.benchmark import PUBLISHED, VARIANTS, training_steps
from gh_downstream.classification.config import ClassificationConfig
from gh_downstream.classification.engine import build_trainer
from gh_downstream.classification.methods import METHODS
from gh_downstream.training import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "classification"
SIZE = 4
PLAIN, HARMONIZED = VARIANTS[:2]


def configured(method, *overrides):
    path = CONFIGS / ("digits-ssrt.yaml" if method == "ssrt" else "digits.yaml")
    options = [f"method={method}", "harmonization.weighting=none", f"batch_size={SIZE}"]
    return load_config(ClassificationConfig, path, [*options, *overrides])


def backward_flops(*layers, inputs=None):
    """Of one backward pass through layers, from the images of both domains or from other inputs."""
    outputs = torch.randn(2 * SIZE, 1, 28, 28) if inputs is None else inputs.requires_grad_()
    for layer in layers:
        outputs = layer(outputs)
    with FlopCounterMode(display=False) as counter:
        outputs.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_steps_and_harmonizing_costs_a_backward_pass(method):
    workload = training_steps(configured(method))
    flops = {variant: workload.flops(variant) for variant in workload.steps}
    if method == "source_only":
        assert list(flops) == [PLAIN]
        return
    assert tuple(flops) == VARIANTS
    assert flops["GH, exact"] == flops["GH++, exact"]
    assert flops[PLAIN] < flops["GH, exact"] < flops[PUBLISHED]


@pytest.mark.parametrize(
    ("method", "overrides", "passes"),
    [("dann", (), 1), ("mcd", ("method_options={mcd: {generator_steps: 3, entropy_weight: 0}}",), 3), ("gvb", (), 1)],
)
def test_harmonizing_adds_the_backward_pass_through_the_shared_part(method, overrides, passes):
    workload = training_steps(configured(method, *overrides), VARIANTS[:2])
    model = workload.model
    shared = backward_flops(model.backbone)
    if method == "gvb":  # Both losses come through the classifier and the bridge.
        features = torch.randn(2 * SIZE, model.backbone.out_features)
        shared += backward_flops(model.classifier, inputs=features) + backward_flops(model.bridge, inputs=features)
    assert workload.flops(HARMONIZED) - workload.flops(PLAIN) == passes * shared > 0


def test_flops_of_the_plain_step_are_those_of_its_passes_forward_and_backward():
    workload = training_steps(configured("source_only"))
    model, images = workload.model, torch.randn(SIZE, 1, 28, 28)
    with FlopCounterMode(display=False) as counter:
        model.classify(images).sum().backward()
    assert workload.flops(PLAIN) == counter.get_total_flops() > 0


@pytest.mark.parametrize(
    ("variant", "weighting", "scope"),
    [
        (PLAIN, Sum(), "shared"),
        ("GH, exact", GH(), "shared"),
        ("GH++, exact", GHPlusPlus(), "shared"),
        (PUBLISHED, GHPlusPlusOfficial(), "all"),
    ],
)
def test_a_step_moves_the_weights_by_the_gradient_it_is_named_after(conflicting, variant, weighting, scope):
    workload, batch, rate = conflicting
    model = workload.model
    workload.reset()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    sides = model(**batch)
    totals = {side: sum(losses.values()) for side, losses in sides.items()}
    Harmonizer(weighting, model.shared, model=model, scope=scope).backward(totals)
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for _ in range(2):  # Each begins at the same state.
        workload.run(variant)
        for name, parameter in model.named_parameters():
            error = torch.linalg.vector_norm((before[name] - parameter.detach()) / rate - expected[name])
            # A bias that batch normalization cancels has a gradient of rounding alone.
            assert error <= 1e-3 * torch.linalg.vector_norm(expected[name]) + 1e-5, name


@pytest.fixture(scope="module")
def conflicting():
    """Steps of DANN by plain gradient descent whose gradients conflict, their batch, and their learning rate."""
    for seed in range(10):
        plain_descent = ("optimizer.momentum=0", "optimizer.weight_decay=0", "optimizer.schedule=step")
        config = configured("dann", f"training.seed={seed}", "optimizer.lr=0.1", *plain_descent)
        workload = training_steps(config)
        batch = build_trainer(config).batches(config.training.steps // 2, 0, 1)
        del batch["file_names"]
        workload.reset()
        totals = {side: sum(losses.values()) for side, losses in workload.model(**batch).items()}
        report = Harmonizer(GH(), workload.model.shared, model=workload.model).backward(totals)
        workload.model.zero_grad()
        if report.conflict:
            return workload, batch, config.optimizer.lr
    raise AssertionError("no conflict in ten seeds")


@pytest.mark.parametrize("method", ["mcd", "dwl"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_has_all_phases(method, variant):
    workload = training_steps(configured(method))
    model, seen = workload.model, []
    handle = model.register_forward_pre_hook(lambda _, __, given: seen.append(given["phase"]), with_kwargs=True)
    workload.run(variant)
    handle.remove()
    assert seen == [phase.name for phase in model.phases]


def test_the_tool_measures_each_method(tmp_path, capsys, monkeypatch):
    some = {method: METHODS[method] for method in ("source_only", "mcd")}
    monkeypatch.setattr("gh_downstream.classification.methods.METHODS", some)
    options = ["--engine", "classification", "--rounds", "2", "--output", str(tmp_path), f"batch_size={SIZE}"]
    assert benchmark.main(options) == 0
    assert "source_only" in capsys.readouterr().out
    assert (tmp_path / "classification-digits.md").exists()
    table = json.loads((tmp_path / "classification-digits.json").read_text())
    assert f"batch_size={SIZE}" in table["header"][-1]
    assert f"mcd: backbone digits, {SIZE} source and {SIZE} target images of 1 x 28 x 28, float32" in table["header"]
    expected = [("source_only", PLAIN), ("mcd", PLAIN), ("mcd", HARMONIZED)]
    assert [tuple(row[:2]) for row in table["rows"]] == expected
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    for row in rows:
        plain = next(other for other in rows if other["method"] == row["method"])
        assert row["ratio of FLOPs"] == pytest.approx(row["GFLOP"] / plain["GFLOP"])
        assert (row["ratio of FLOPs"] > 1) == (row["step"] != PLAIN)
        assert all(math.isfinite(row[name]) and row[name] > 0 for name in table["columns"][4:])
        if row["step"] == PLAIN:
            assert row["ratio"] == row["lower quartile"] == row["upper quartile"] == 1
    sizes = {row["method"]: (row["parameters"], row["shared"]) for row in rows}
    backbone = (16 * 25 + 16) + (32 * 16 * 25 + 32) + (512 * 128 + 128) + (128 * 128 + 128) + 2 * 128
    classifier = 128 * 10 + 10
    assert sizes["source_only"] == (backbone + classifier, 0)
    assert sizes["mcd"] == (backbone + 2 * classifier, backbone)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["source.format=folder", "source.domain=null", "source.path=none/amazon"], "none/amazon does not exist"),
        (["training.mixed_precision=bf16"], "mixed_precision=no"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, overrides, expected):
    options = ["--engine", "classification", "--config", str(CONFIGS / "digits.yaml"), "--output", str(tmp_path)]
    assert benchmark.main([*options, *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert len(error.splitlines()) == 1


def test_what_a_training_left_in_its_folder_is_neither_read_nor_changed(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    training_steps(configured("dann", f"output={tmp_path}")).run(HARMONIZED)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]
    assert (tmp_path / "last.pt").read_bytes() == b"no checkpoint"
