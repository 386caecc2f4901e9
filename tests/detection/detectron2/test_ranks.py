"""The domain-adaptive R-CNN in two gloo processes, with a burn-in."""

from functools import partial

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.engine.defaults import create_ddp_model

from gh_downstream.harmonization import GH
from gh_downstream.integrations.detectron2 import install_gradient_harmonization
from tests.detection.detectron2.adaptive_models import losses_of, model_of, source, target
from tests.integrations.detectron2.toy_detectors import weights

pytestmark = pytest.mark.slow

STEPS, BURN_IN = 4, 2
SETTINGS = {
    "plain": {"weighting": "none"},
    "shared": {"weighting": "gh"},
    "all": {"weighting": "gh", "scope": "all"},
    "sum": {"weighting": "sum"},
    "features": {"weighting": "gh", "measure": "features"},
}
CASES = [(name, False) for name in SETTINGS] + [(name, True) for name in ("plain", "shared", "features")]


def batches(rank, pseudo):
    """Other images, and another number of them, in each process."""
    while True:
        yield source(1 + rank, masks=pseudo, seed=rank) + target(1, pseudo, seed=10 + rank)


def build(pseudo, **options):
    return model_of("mask c4" if pseudo else "fpn", "DA.BURN_IN_ITERS", BURN_IN, **options)


def train(settings, pseudo, rank):
    model = build(pseudo, harmonize_features=GH() if settings.get("measure") == "features" else None)
    # Detectron2's own arguments, but for a CPU.
    parallel = create_ddp_model(model, device_ids=None, broadcast_buffers=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
    trainer = SimpleTrainer(parallel, batches(rank, pseudo), optimizer)
    install_gradient_harmonization(trainer, log_period=1, **settings)
    torch.manual_seed(rank)
    trainer.train(0, STEPS)
    return trainer


# So many samples that none is left to the random numbers.
ALL = ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100_000, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 100_000)
DRAWN = {"nothing is drawn": False, "regions and dropout are drawn": True}


def first_gradient(drawn, batch, seed=1, wrapped=lambda model: model):
    """The gradient of the plain sum of the losses in the first step."""
    model = model_of("fpn", *(() if drawn else ALL))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and not drawn:
            module.p = 0.0
    ddp = wrapped(model)  # which averages as long as it is there
    losses = losses_of(ddp, batch, seed=seed)
    sum(losses.values()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def work(rank):
    half = [source(2)[rank], target(2)[rank]]
    parallel = partial(create_ddp_model, device_ids=None, broadcast_buffers=False)
    found = {name: first_gradient(drawn, half, 1 + rank, parallel) for name, drawn in DRAWN.items()}
    for case in CASES:
        trainer = train(SETTINGS[case[0]], case[1], rank)
        histories = {key: history.values() for key, history in trainer.storage.histories().items()}
        found[case] = weights(trainer), histories
    return found


@pytest.fixture(scope="module")
def results(ranks):
    return ranks(work)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ranks_agree_and_harmonization_begins_after_the_burn_in(results, case):
    (first, histories), (second, of_the_other) = (result[case] for result in results)
    assert torch.equal(first, second)
    assert first.isfinite().all()
    assert not torch.equal(first, torch.cat([p.detach().flatten() for p in build(case[1]).parameters()]))
    domain = [value for value, _ in histories["loss_instance_domain"]]
    assert [value == 0 for value in domain] == [True] * BURN_IN + [False] * (STEPS - BURN_IN)
    assert not [key for key in of_the_other if key.startswith("gh/")]
    pseudo = [k for _, k in histories.get("loss_cls_pseudo", [])]
    assert pseudo == (list(range(BURN_IN, STEPS)) if case[1] else [])
    if case[0] == "plain":
        assert "gh/cosine" not in histories
    else:
        assert [k for _, k in histories["gh/cosine"]] == list(range(BURN_IN, STEPS))


def test_sum_is_plain_training_bit_for_bit(results):
    assert torch.equal(results[0]["sum", False][0], results[0]["plain", False][0])


@pytest.mark.parametrize("name", DRAWN)
def test_the_first_step_is_that_of_one_process_but_for_what_is_drawn(results, name):
    """Which anchors and regions are learnt from, and what dropout drops, each process draws for itself."""

    def distance(one, other):
        return float((one - other).norm() / other.norm())

    drawn = DRAWN[name]
    first, second = (result[name] for result in results)
    assert torch.equal(first, second)
    whole = first_gradient(drawn, source(2) + target(2))
    if not drawn:
        assert distance(first, whole) < 1e-5
        return
    between_seeds = [distance(first_gradient(drawn, source(2) + target(2), seed), whole) for seed in range(2, 8)]
    assert 0 < distance(first, whole) < max(between_seeds)
