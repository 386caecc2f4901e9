"""The steps that the benchmark compares do what they are named after; how long they take is not tested."""

from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage

from gh_downstream import GH, GHPlusPlus, GHPlusPlusOfficial, Harmonizer, Sum
from gh_downstream.detection.detectron2.benchmark import training_steps
from gh_downstream.detection.detectron2.data import build_paired_train_loader
from gh_downstream.detection.detectron2.trainer import load_cfg
from gh_downstream.harmonization import group_losses
from tests.integrations.detectron2 import toy_detectors as common_detectors  # noqa: F401  # skips where there is no Detectron2

pytestmark = pytest.mark.slow

MINI = Path(__file__).parents[3] / "configs" / "detection" / "mini"
SMALL = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.IMS_PER_BATCH", "1", "SOLVER.CLIP_GRADIENTS.ENABLED", "False"]


@pytest.fixture(scope="module")
def data(mini_tree, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    (root / "mini_cityscapes").symlink_to(mini_tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield


@pytest.fixture(scope="module")
def example(data):
    """A batch and the steps on it, whose gradients conflict."""
    for seed in range(10):
        options = [*SMALL, "SEED", str(seed)]
        workload = training_steps(str(MINI / "da.yaml"), options)
        batch = next(iter(build_paired_train_loader(load_cfg(str(MINI / "da.yaml"), options))))
        if by_hand(workload, batch, GH()).conflict:
            return workload, batch
    raise AssertionError("no conflict in ten seeds")


def by_hand(workload, batch, weighting, scope="shared"):
    """Run a Harmonizer on the batch, the weights and the random numbers of the steps, and nothing else of a step."""
    workload.reset()
    workload.model.harmonize_features = None
    with EventStorage():
        losses = workload.model(batch)
    harmonizer = Harmonizer(weighting, workload.model.shared, model=workload.model, scope=scope)
    return harmonizer.backward(group_losses(losses))


def gradients(workload):
    return {name: p.grad.clone() for name, p in workload.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("step", "weighting", "scope"),
    [
        ("plain sum", Sum(), "shared"),
        ("GH, exact", GH(), "shared"),
        ("GH++, exact", GHPlusPlus(), "shared"),
        ("GH++, exact, period 4", GHPlusPlus(), "shared"),
        ("PCGrad of TorchJD, exact", GH(), "shared"),  # Of two tasks they are the same.
        ("GH++ as published, three backward passes", GHPlusPlusOfficial(), "all"),
    ],
)
def test_a_step_leaves_the_gradient_it_is_named_after(example, step, weighting, scope):
    workload, batch = example
    if step not in workload.steps:
        pytest.skip("needs pip install 'gh_downstream[torchjd]'")
    by_hand(workload, batch, weighting, scope)
    expected = gradients(workload)
    for _ in range(2):  # The second time the period holds its weights.
        workload.run(step)
        found = gradients(workload)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            # The published code sums in float32; a single entry may be all cancellation.
            error = torch.linalg.vector_norm(found[name] - gradient)
            assert error <= 1e-4 * torch.linalg.vector_norm(gradient), name


def test_the_fork_changes_the_trunk_and_leaves_the_discriminators_alone(example):
    workload, _ = example
    workload.run("plain sum")
    plain = gradients(workload)
    workload.run("GH++, fork at the features")
    forked = gradients(workload)
    assert workload.model.measurements.report is not None
    assert any(not torch.equal(forked[name], plain[name]) for name in plain if name.startswith("backbone"))
    for name in plain:
        if name.startswith("alignment"):
            torch.testing.assert_close(forked[name], plain[name])


@pytest.mark.skipif(torch.cuda.is_available(), reason="the mixed precision of a CPU")
def test_mixed_precision_takes_the_same_steps_in_bfloat16(data):
    options = [*SMALL, "SEED", "0", "SOLVER.AMP.ENABLED"]
    exact, mixed = (training_steps(str(MINI / "da.yaml"), [*options, enabled]) for enabled in ("False", "True"))
    assert mixed.description.endswith("mixed precision (bf16)")
    assert mixed.steps.keys() == exact.steps.keys()
    for step in mixed.steps:
        found, expected = [], []
        for workload, kept in ((mixed, found), (exact, expected)):
            workload.run(step)
            kept += [gradients(workload)[name].flatten() for name in sorted(gradients(workload))]
        found, expected = torch.cat(found), torch.cat(expected)
        assert not torch.equal(found, expected)
        assert torch.cosine_similarity(found, expected, dim=0) > 0.9, step


def test_a_configuration_without_target_is_refused(example):
    with pytest.raises(ValueError, match="needs a target"):
        training_steps(str(MINI / "source-only.yaml"), SMALL)


def test_flops_and_parameters_are_counted(example):
    workload, _ = example
    assert workload.flops("plain sum") < workload.flops("GH, exact")
    trained, shared = workload.parameters()
    assert 0 < shared < trained
