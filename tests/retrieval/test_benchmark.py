"""The steps that the benchmark compares do what they are named after; how long they take is not tested."""

import json
from functools import partial
from pathlib import Path

import benchmark
import pytest
import torch

from gh_downstream import GH, GHPlusPlus, GHPlusPlusOfficial, Harmonizer, Sum
from gh_downstream.retrieval.batches import StepBatches
from gh_downstream.retrieval.benchmark import adaptation_steps
from gh_downstream.retrieval.config import RetrievalConfig
from gh_downstream.retrieval.data.mini_scenes import make_mini_scenes
from gh_downstream.retrieval.engine import load_training_data
from gh_downstream.training import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "retrieval"
MINI = CONFIGS / "mini-gh++.yaml"
FORK = "GH++, fork at the features"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with the mini-scenes where the tool looks for them, fewer of them."""
    root = tmp_path_factory.mktemp("benchmark")
    make_mini_scenes(root / "datasets" / "mini_scenes", train=20, target=20, val=1, test=1)
    return root


@pytest.fixture(scope="module")
def overrides(folder):
    """Small steps, whose gradient is not clipped."""
    scenes = folder / "datasets" / "mini_scenes"
    data = [f"source.path={scenes / 'source' / 'train.csv'}", f"target.path={scenes / 'target' / 'train.jsonl'}"]
    encoder = ("encoder_options={width: 32, layers: 1}", "batch_size=8", "optimizer.clip_norm=null")
    return [*data, "target.side=both", *encoder]


@pytest.fixture(scope="module", params=["image", "both"])
def example(overrides, request):
    """A configuration, and its steps, whose gradients conflict at the parameters and at the features."""
    for seed in range(10):
        options = [*overrides, f"alignment.mmd.side={request.param}", f"training.seed={seed}"]
        config = load_config(RetrievalConfig, MINI, options)
        workload = adaptation_steps(config)
        workload.run(FORK)
        if workload.model.measurements.report.conflict and by_hand(workload, config, GH()).conflict:
            return workload, config
    raise AssertionError("no conflict in ten seeds")


def totals(workload, config, harmonize_features=None):
    """The losses of the batch, the weights and the random numbers of the steps, by side."""
    source, target = load_training_data(config)
    model = workload.model
    batch = StepBatches(source, target, model.encoder, config.batch_size, config.training.seed)(0, 0, 1)
    del batch["file_names"]
    workload.reset()
    model.harmonize_features = harmonize_features
    return {side: sum(losses.values()) for side, losses in model(**batch).items()}


def by_hand(workload, config, weighting, scope="shared"):
    model = workload.model
    harmonizer = Harmonizer(weighting, model.shared, model=model, scope=scope)
    return harmonizer.backward(totals(workload, config))


def gradients(workload):
    return {name: parameter.grad.clone() for name, parameter in workload.model.named_parameters()}


def after(workload, step):
    workload.run(step)
    return gradients(workload)


def assert_same(found, expected):
    for name, gradient in expected.items():
        # The published code sums in float32; a single entry may be all cancellation.
        assert torch.linalg.vector_norm(found[name] - gradient) <= 1e-4 * torch.linalg.vector_norm(gradient), name


@pytest.mark.parametrize(
    ("step", "weighting", "scope"),
    [
        ("plain sum", Sum(), "shared"),
        ("GH, exact", GH(), "shared"),
        ("GH++, exact", GHPlusPlus(), "shared"),
        ("GH++, exact, period 4", GHPlusPlus(), "shared"),
        ("GH++ as published, three backward passes", GHPlusPlusOfficial(), "all"),
        ("PCGrad of TorchJD, exact", GH(), "shared"),  # Of two tasks they are the same.
    ],
)
def test_a_step_leaves_the_gradient_it_is_named_after(example, step, weighting, scope):
    workload, config = example
    if step not in workload.steps:
        pytest.skip("needs pip install 'gh_downstream[torchjd]'")
    by_hand(workload, config, weighting, scope)
    expected = gradients(workload)
    for _ in range(2):  # The second time the period holds its weights.
        assert_same(after(workload, step), expected)


def test_the_fork_leaves_the_gradient_of_a_model_that_forks(example):
    workload, config = example
    sum(totals(workload, config, GHPlusPlus()).values()).backward()
    expected = gradients(workload)
    assert_same(after(workload, FORK), expected)
    assert workload.model.measurements.total == 1


@pytest.mark.parametrize(
    ("step", "passes"),
    [
        ("plain sum", 4 * 2),  # source and target
        ("GH, exact", 4 * 3),  # source and target for the alignment, source for the task
        ("GH++, exact", 4 * 3),
        ("GH++, exact, period 4", 3 + 3 * 2),
        (FORK, 4 * 2),
        ("GH++ as published, three backward passes", 4 * 5),  # as exact, and once more for the weighted loss
    ],
)
def test_four_steps_run_backward_through_a_tower_as_often_as_documented(example, step, passes):
    workload, _ = example
    model, counts = workload.model, {"encoder.image": 0, "encoder.text": 0}

    def count(name, module, arguments, features):
        def counted(gradient):
            counts[name] += 1

        features.register_hook(counted)

    handles = [model.get_submodule(name).register_forward_hook(partial(count, name)) for name in counts]
    for _ in range(4):
        workload.run(step)
    for handle in handles:
        handle.remove()
    # A text tower that nothing aligns is the task's alone.
    assert counts == {name: passes if name in model.shared else 4 for name in counts}


def test_only_the_published_recipe_weighs_private_parameters(example):
    workload, _ = example
    shared = tuple(f"{module}." for module in workload.model.shared)
    plain = after(workload, "plain sum")
    private = [name for name in plain if not name.startswith(shared)]
    assert "encoder.logit_scale" in private
    for step in workload.steps:
        found = after(workload, step)
        kept = all(torch.allclose(found[name], plain[name], rtol=1e-4, atol=1e-6) for name in private)
        assert kept == ("as published" not in step), step
        assert any(not torch.equal(found[name], plain[name]) for name in plain) == (step != "plain sum"), step


def test_a_step_clips_and_updates_and_begins_at_the_weights_of_the_configuration(overrides):
    workload = adaptation_steps(load_config(RetrievalConfig, MINI, [*overrides, "optimizer.clip_norm=0.01"]))
    parameters = list(workload.model.parameters())
    initial = [parameter.detach().clone() for parameter in parameters]
    for step in workload.steps:
        workload.run(step)
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        assert norm.item() == pytest.approx(0.01, rel=1e-3), step
        assert not any(torch.equal(parameter, before) for parameter, before in zip(parameters, initial, strict=True))
        workload.reset()
        assert all(torch.equal(parameter, before) for parameter, before in zip(parameters, initial, strict=True))


def test_the_realistic_configuration_shares_a_tower_or_both(overrides):
    path = CONFIGS / "benchmark_ViT-B-32.yaml"
    assert load_config(RetrievalConfig, path).encoder == "openclip:ViT-B-32"
    own = [option for option in overrides if not option.startswith(("target.side", "batch_size"))]
    for on, expected in (("image", ["image"]), ("both", ["image", "text"])):
        config = load_config(RetrievalConfig, path, [*own, "encoder=tiny", "init=random", f"alignment.mmd.side={on}"])
        workload = adaptation_steps(config)
        assert workload.model.shared == [f"encoder.{tower}" for tower in expected]
        assert "4 source images, 4 source captions, 4 target images, 4 target captions" in workload.description[1]


def test_a_damaged_image_is_skipped_as_in_training(tmp_path):
    make_mini_scenes(tmp_path / "scenes", train=8, target=8, val=1, test=1)
    next((tmp_path / "scenes" / "source" / "images" / "train").iterdir()).write_bytes(b"")
    data = [f"source.path={tmp_path}/scenes/source/train.csv", f"target.path={tmp_path}/scenes/target/train.jsonl"]
    config = load_config(RetrievalConfig, MINI, [*data, "batch_size=8", "max_skipped=0.2"])  # All images of the source.
    workload = adaptation_steps(config)
    assert all(gradient.isfinite().all() for gradient in after(workload, "plain sum").values())
    config.max_skipped = 0.0
    with pytest.raises(ValueError, match="images/train"):
        adaptation_steps(config)


def test_refuses_what_it_cannot_measure(overrides):
    source_only = [option for option in overrides if not option.startswith("target")]
    for name, options in (("aligned", [*overrides, "alignment.mmd.weight=0"]), ("source-only", source_only)):
        with pytest.raises(ValueError, match="needs alignment"):
            adaptation_steps(load_config(RetrievalConfig, CONFIGS / f"mini-{name}.yaml", options))
    half = load_config(RetrievalConfig, MINI, [*overrides, "training.mixed_precision=bf16"])
    with pytest.raises(ValueError, match="mixed_precision=no"):
        adaptation_steps(half)


def test_the_tool_prints_and_writes_the_table(tmp_path, folder, overrides, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    options = ["--engine", "retrieval", "--rounds", "2", "--output", str(tmp_path)]
    assert benchmark.main([*options, *overrides]) == 0
    printed = capsys.readouterr().out
    table = json.loads((tmp_path / "retrieval-mini-gh++.json").read_text())
    assert [row[0] for row in table["rows"]][:2] == ["plain sum", "GH, exact"]
    assert FORK in [row[0] for row in table["rows"]]
    assert table["rows"][0][2:] == [1, 1, 1, 0]
    assert "8 source images, 8 source captions, 8 target images" in printed
    assert (tmp_path / "retrieval-mini-gh++.md").exists()


@pytest.mark.parametrize(
    ("options", "expected"), [(["--config", "none.yaml"], "none.yaml"), (["target.side=texts"], "no images")]
)
def test_a_mistake_is_one_line(folder, overrides, capsys, monkeypatch, options, expected):
    monkeypatch.chdir(folder)
    options = [*options, *overrides] if options[0] == "--config" else [*overrides, *options]
    assert benchmark.main(["--engine", "retrieval", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert len(error.splitlines()) == 1
