"""Two gloo processes against one process on the joined batch, for methods of one update and of several."""

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.classification import tiny_domains as tiny
from tests.kill import lines_of

pytestmark = pytest.mark.slow

CASES = {
    f"{name}, {method}": (baseline, options, method)
    for name, baseline, options in (
        ("mcd", "mcd", {"generator_steps": 2}),
        ("cdan", "cdan", {"entropy": False, "hidden": 8}),
        ("cdan+e", "cdan", {"hidden": 8}),
    )
    for method in ("none", "gh")
}


def run_cases(rank, folder):
    return {name: tiny.run_case(case, folder / name) for name, case in CASES.items()} | {
        NORMALIZED: tiny.run_normalized(tiny.step_batches(1), folder / NORMALIZED)
    }


NORMALIZED = "with batch normalization"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def results(ranks, folder):
    """The weights that each rank ends with, by case."""
    return ranks(run_cases, folder, group=False)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case, results, folder, tmp_path):
    first, second = (of_rank[case] for of_rank in results)
    AcceleratorState._reset_state(True)
    single = tiny.run_case(CASES[case], tmp_path)
    assert first.keys() == single.keys()
    for name, weights in single.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weights, rtol=1e-4, atol=1e-6)
    lines = [lines_of(output) for output in (folder / case, tmp_path)]
    assert len(lines[0]) == len(lines[1]) == 3
    for ours, theirs in zip(*lines, strict=True):
        assert ours == pytest.approx(theirs, 1e-3, 1e-5)


def test_batch_normalization_takes_the_share_of_each_process(results, tmp_path):
    """With it two processes are not one: each normalizes its own images, and they take the mean of their gradients."""
    batches = tiny.step_batches(1)

    def single(name, rank, ranks):
        AcceleratorState._reset_state(True)
        return tiny.run_normalized(lambda step, _, __: batches(step, rank, ranks), tmp_path / name)

    joint, shares = single("joint", 0, 1), [single(f"{rank}", rank, 2) for rank in range(2)]
    for name in shares[0]:
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            found = results[0][NORMALIZED][name]
            assert torch.equal(found, results[1][NORMALIZED][name]), name
            torch.testing.assert_close(found, (shares[0][name] + shares[1][name]) / 2, rtol=1e-5, atol=1e-7)
    assert any(not torch.allclose(results[0][NORMALIZED][name], joint[name], atol=1e-5) for name in joint)
