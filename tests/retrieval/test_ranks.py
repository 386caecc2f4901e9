"""Two gloo processes against one process on the joined batch: losses, gradients and weights of GH."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from gh_downstream import GH, GHPlusPlus, Harmonizer
from gh_downstream.retrieval.objectives import TaskConfig, TripletConfig, gather_with_gradient
from tests.retrieval.toy_encoder import TERMS, batch, flatten, model, side_sums, terms, total, with_waves

pytestmark = pytest.mark.slow

IMAGES = 8
CASES = {
    "contrastive": {"on": "both"},
    "several captions": {"on": "both", "captions": 2},
    "sigmoid": {"on": "image", "task": "sigmoid"},
    "triplet": {"on": "both", "task": TaskConfig(triplet=TripletConfig(0.5))},
    "consistency": {"on": "both", "consistency": 0.1},
    "shared captions": {"on": "both", "captions": 2, "shared": True},
    "chunks": {"on": "both", "captions": 2, "micro_batch": 3},
    "target alone": {"on": "both", "source_share": 0.0},
    "features": {"on": "image", "harmonize_features": GH()},
    "features, both": {"on": "both", "harmonize_features": GHPlusPlus(), "micro_batch": 2},
    "features, consistency": {"on": "image", "harmonize_features": GH(), "consistency": 0.1, "micro_batch": 3},
}


def prepared(case):
    """A model on its way, its starting model one with the opposite similarities, which opposes the task; the batch."""
    options = dict(CASES[case])
    alignment, captions = terms(*TERMS, on=options.pop("on")), options.pop("captions", 1)
    if consistency := options.pop("consistency", 0.0):
        alignment |= terms("consistency", weight=consistency)
    shared = options.pop("shared", False)
    ours, inputs = model(alignment, **options), batch(IMAGES, captions)
    if consistency:  # The ranks draw noise of their own.
        ours.alignment.terms["consistency_image"].perturb = with_waves
    # Both ranks have an image with the same id: what belongs together is found across ranks.
    inputs["source_groups"][IMAGES - 1] = inputs["source_groups"][0]
    inputs["source_text_groups"][-captions:] = inputs["source_groups"][0]
    if shared:  # One caption belongs to an image of either rank.
        inputs["source_text_groups"][[1, 2 * IMAGES - 4]] = 999
        others = torch.full((IMAGES,), -1).index_fill(0, torch.tensor([0, IMAGES - 2]), 999)
        inputs["source_groups"] = torch.stack([inputs["source_groups"], others], dim=1)
    optimizer = torch.optim.Adam(ours.encoder.parameters(), lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        sum(ours(**inputs)["task"].values()).backward()
        optimizer.step()
    ours.zero_grad()
    ours.measurements.read()
    start = ours.alignment.start
    start.load_state_dict(ours.encoder.state_dict())
    # The similarities of the features that are learnt to those of the start are now minus the start's own.
    for parameter in (*start.image[-1].parameters(), *start.text[-1].parameters()):
        parameter.neg_()
    return ours, inputs


def step(ours, inputs, rank=None):
    """Losses, gradients and weights of one step, on the part of a rank or on the whole batch."""
    if rank is not None:
        inputs = {name: x.chunk(2)[rank] for name, x in inputs.items()}
    wrapped = ours
    if rank is not None and ours.harmonize_features is not None:
        wrapped = DistributedDataParallel(ours)
    sides = wrapped(**inputs)
    losses = {name: loss.detach() for name, loss in flatten(sides).items()}
    if ours.harmonize_features is None:
        report = Harmonizer(GHPlusPlus(), ours.shared, model=ours).backward(side_sums(sides))
    else:
        total(sides).backward()
        report = ours.measurements.report
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    return {"losses": losses, "gradients": gradients, "gramian": report.gramian, "weights": report.weights}


def gathered(rank):
    x = torch.arange(6.0).view(3, 2) + 10 * rank
    x.requires_grad_()
    whole = gather_with_gradient(x)
    (whole * (rank + 1) * torch.arange(12.0).view(6, 2)).sum().backward()
    unequal = []
    for rows in (torch.ones(2 + rank, 2), torch.arange(4 - rank)):
        with pytest.raises(ValueError, match="rows to gather") as error:
            gather_with_gradient(rows)
        unequal.append(str(error.value))
    ids = gather_with_gradient(torch.tensor([rank, 7]))
    return {"whole": whole.detach(), "grad": x.grad, "unequal": unequal, "ids": ids}


def run_cases(rank, start):
    return {case: step(*start[case], rank) for case in CASES} | {"gathered": gathered(rank)}


@pytest.fixture(scope="module")
def start():
    return {case: prepared(case) for case in CASES}


@pytest.fixture(scope="module")
def results(ranks, start):
    """What each rank returned, by case."""
    return ranks(run_cases, start)


def test_gather_concatenates_and_sums_the_gradients_of_all_ranks(results):
    first = torch.arange(6.0).view(3, 2)
    factors = (1 + 2) * torch.arange(12.0).view(6, 2)
    for rank, result in enumerate(results):
        found = result["gathered"]
        assert torch.equal(found["whole"], torch.cat([first, first + 10]))
        assert torch.equal(found["grad"], factors.chunk(2)[rank])
        assert found["ids"].tolist() == [0, 7, 1, 7]


def test_ranks_that_have_unequal_parts_all_say_so(results):
    for result in results:
        features, ids = result["gathered"]["unequal"]
        assert features.startswith("the processes have 2, 3 rows to gather")
        assert ids.startswith("the processes have 4, 3 rows to gather")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_on_the_joined_batch(results, start, case):
    expected = step(*start[case])
    assert (expected["weights"] != 1).all()  # The sides are in conflict, or there would be nothing to get wrong.
    for result in results:
        found = result[case]
        assert found["gradients"].keys() >= expected["gradients"].keys()
        for name, gradient in found["gradients"].items():
            torch.testing.assert_close(
                gradient,
                expected["gradients"].get(name, torch.zeros_like(gradient)),
                rtol=1e-6,
                atol=1e-9,
                msg=lambda text, name=name: f"{name}: {text}",
            )
        for key in ("gramian", "weights"):
            torch.testing.assert_close(found[key], expected[key], rtol=1e-6, atol=1e-9)
    for name, loss in expected["losses"].items():  # Each rank has the rows of its own share.
        mean = torch.stack([result[case]["losses"][name] for result in results]).mean()
        torch.testing.assert_close(mean, loss, rtol=1e-6, atol=1e-9)
    for name, gradient in results[0][case]["gradients"].items():
        assert torch.equal(gradient, results[1][case]["gradients"][name]), name
