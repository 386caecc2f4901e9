"""TorchJD as an oracle, and as a plug in both directions."""

import inspect
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gh_downstream import GH, GHPlusPlus, Harmonizer
from gh_downstream.harmonization import as_torchjd, parse_weighting
from gh_downstream.harmonization.torchjd import TORCHJD, torchjd_weighting
from tests.harmonization.networks import TwoHeads, batch

aggregation = pytest.importorskip("torchjd.aggregation", reason="needs pip install 'gh_downstream[torchjd]'")


@given(exponents=st.tuples(st.floats(-6, 6), st.floats(-6, 6)), cosine=st.floats(-1, 1))
def test_p11_gh_of_two_tasks_is_pcgrad(exponents, cosine):
    n1, n2 = (10.0**e for e in exponents)
    gramian = torch.tensor([[n1**2, cosine * n1 * n2], [cosine * n1 * n2, n2**2]], dtype=torch.float64)
    torch.testing.assert_close(GH()(gramian), aggregation.PCGradWeighting()(gramian), rtol=1e-12, atol=0)


@given(ratio=st.floats(-2, 2), cosine=st.floats(-0.999, 0.999))
def test_p11_gh_of_two_tasks_is_twice_upgrad(ratio, cosine):
    r = 10.0**ratio
    assume(abs(cosine) > 1e-6)
    gramian = torch.tensor([[r * r, cosine * r], [cosine * r, 1.0]], dtype=torch.float64)
    from torchjd.linalg import QuadprogProjector

    upgrad = aggregation.UPGradWeighting(projector=QuadprogProjector(norm_eps=0.0, reg_eps=0.0))
    torch.testing.assert_close(GH()(gramian), 2 * upgrad(gramian), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", sorted(TORCHJD))
def test_every_named_weighting_harmonizes_small_gradients_as_it_does_large_ones(name):
    gramian = torch.tensor([[1.0, -0.5], [-0.5, 2.0]], dtype=torch.float64)
    weights = [parse_weighting(name)(gramian * scale) for scale in (1e-12, 1.0, 1e6)]
    for found in weights:
        assert found.shape == (2,)
        torch.testing.assert_close(found, weights[1], rtol=1e-6, atol=1e-9)


def test_a_cap_holds_for_the_weights_of_torchjd_too():
    gramian = torch.tensor([[1.0, -9.0], [-9.0, 100.0]], dtype=torch.float64)
    assert parse_weighting("pcgrad")(gramian)[0] > 3
    assert parse_weighting("pcgrad", max_weight=3.0)(gramian)[0] == 3


def test_a_torchjd_weighting_is_a_weighting_of_ours():
    ours, theirs = TwoHeads(), TwoHeads()
    Harmonizer(GH(), shared=ours.trunk).backward(ours(batch()))
    Harmonizer(aggregation.PCGradWeighting(), shared=theirs.trunk).backward(theirs(batch()))
    for p, q in zip(ours.trunk.parameters(), theirs.trunk.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("weighting", [GH(), GHPlusPlus("adaptive")], ids=repr)
def test_ours_works_in_torchjd_s_aggregator(weighting):
    torch.manual_seed(0)
    jacobian = torch.randn(2, 5, dtype=torch.float64)
    jacobian[1] = -jacobian[0] + 0.5 * jacobian[1]
    aggregator = aggregation.GramianWeightedAggregator(as_torchjd(weighting))
    torch.testing.assert_close(aggregator(jacobian), weighting(jacobian @ jacobian.T) @ jacobian)


@pytest.mark.parametrize("word", ["gradvac", "pcd"])
def test_a_weighting_with_a_state_resumes_with_it(tmp_path, word):
    def run(harmonizer, model, seeds):
        return [harmonizer.backward(model(batch(seed=seed))).weights for seed in seeds]

    model = TwoHeads()
    whole = run(Harmonizer(parse_weighting(word), shared=model.trunk), model, range(6))
    first = Harmonizer(parse_weighting(word), shared=model.trunk)
    run(first, model, range(3))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Harmonizer(parse_weighting(word), shared=model.trunk)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for a, b in zip(run(second, model, range(3, 6)), whole[3:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("word", ["gradvac", "pcd", "gradvac:length=sum"])
def test_an_overflow_is_not_remembered(word):
    """A loss scaler skips that step; what is averaged over the steps goes on as without it."""
    model = TwoHeads()
    harmonizer, undisturbed = (Harmonizer(word, shared=model.trunk) for _ in range(2))
    for seed in range(3):
        expected = undisturbed.backward(model(batch(seed=seed))).weights
        if seed == 2:
            losses = model(batch(seed=7))
            report = harmonizer.backward({**losses, "task": losses["task"] * float("inf")})
            assert report.weights.tolist() == [1, 1]
        found = harmonizer.backward(model(batch(seed=seed))).weights
    assert torch.equal(found, expected)


def test_an_aggregator_in_the_place_of_a_weighting_is_refused_and_its_own_weighting_is_not():
    model = TwoHeads()
    with pytest.raises(TypeError, match=r"give UPGrad\(\)\.gramian_weighting"):
        Harmonizer(aggregation.UPGrad(), shared=model.trunk)
    Harmonizer(aggregation.UPGrad().gramian_weighting, shared=model.trunk).backward(model(batch()))


@pytest.mark.parametrize("name", sorted(TORCHJD))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "banana"], ids=str)
def test_every_argument_of_every_weighting_is_checked(name, value):
    for argument in ["max_weight", *inspect.signature(getattr(aggregation, TORCHJD[name][0])).parameters]:
        if argument != "projector":
            with pytest.raises(ValueError, match=argument.split("_")[0]):
                torchjd_weighting(name, **{argument: value})


@pytest.mark.parametrize(("package", "word"), [("cvxpy", "cagrad"), ("quadprog", "upgrad:max_weight=3")])
def test_a_package_that_is_missing_in_part_is_one_line_with_the_command(tmp_path, package, word):
    """It is found, and cannot be imported: TorchJD says so with a NameError, or not before its solver is called."""
    (tmp_path / f"{package}.py").write_text("raise ImportError('built for another NumPy')")
    code = f"from gh_downstream.harmonization import parse_weighting; parse_weighting('{word}')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=False, env=environment).stderr
    name = word.split(":")[0]
    assert said.endswith(f"ImportError: '{name}' needs more than TorchJD: pip install 'gh_downstream[torchjd]'\n")
    assert said.count("Traceback") == 1
