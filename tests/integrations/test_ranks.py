"""The mixins and the loss of open_clip in two gloo processes against one process on the joined batch."""

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("open_clip")
pytest.importorskip("lightning")

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from open_clip.loss import ClipLoss
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy, normalize
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from gh_downstream import GH
from gh_downstream.adaptation import mmd
from gh_downstream.integrations.open_clip_train import HarmonizedClipLoss
from gh_downstream.retrieval.objectives import gather_with_gradient
from tests.integrations import tiny_lightning
from tests.integrations.tiny_clip import AlignedTrainer, arguments, clip, collate, pairs, weights

pytestmark = pytest.mark.slow


def training(folder, batch_size, resume=None):
    """A training whose second step holds the weights of the first, and goes on from there when it is resumed."""
    args = arguments(
        folder,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        save_strategy="steps",
        save_steps=1,
    )
    trainer = AlignedTrainer(
        clip(),
        args,
        train_dataset=pairs(24),
        eval_dataset=pairs(8),
        data_collator=collate,
        weighting=GH(),
        period=2,
    )
    trainer.train(resume_from_checkpoint=resume)
    log = [
        {key: value for key, value in entry.items() if key.startswith("gh/")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return {"weights": weights(trainer.model), "log": log, "evaluated": trainer.evaluate()["eval_loss"]}


def lightning_training(folder, batch_size, **settings):
    """A training of Lightning that accumulates and clips."""
    model = tiny_lightning.Adapted(GH(), period=2)
    settings |= {"max_epochs": 2, "accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    trainer = tiny_lightning.fit(model, folder, batch_size=batch_size, **settings)
    return {"weights": tiny_lightning.weights(model), "log": trainer.logger.entries}


def sharded_training(folder, sampler):
    """A training of Lightning whose backbone is sharded."""

    class Sharded(tiny_lightning.Adapted):
        def configure_model(self):
            fully_shard(self.backbone, mesh=self.device_mesh["data_parallel"])

    model = Sharded(GH(), period=2)
    options = {"devices": 2, "strategy": ModelParallelStrategy(2, 1), "batch_size": 2, "sampler": sampler}
    tiny_lightning.fit(model, folder, **options)
    values = [parameter.detach() for parameter in model.parameters()]
    return torch.cat([getattr(value, "full_tensor", lambda v=value: v)().flatten() for value in values])


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(6, 4), nn.Linear(5, 4)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images, texts):
        features = {"image_features": self.image(images), "text_features": self.text(texts)}
        return {name: normalize(x, dim=1) for name, x in features.items()} | {"logit_scale": self.logit_scale.exp()}


def alignment(images, texts):
    """A discrepancy of the whole batch that also unlearns which text an image has."""
    images, texts = gather_with_gradient(images), gather_with_gradient(texts)
    return 0.1 * mmd(images, texts) - 0.5 * cross_entropy(5 * images @ texts.T, torch.arange(len(images)))


def step(rank=None):
    """The gradients and the report of a step with the loss of open_clip, on a rank's part or the whole batch."""
    generator = torch.Generator().manual_seed(1)
    images, texts = (torch.randn(8, n, generator=generator, dtype=torch.float64) for n in (6, 5))
    reports = []
    model = Towers().double()
    clip_loss = ClipLoss() if rank is None else ClipLoss(True, True, rank=rank, world_size=2)
    loss = HarmonizedClipLoss(clip_loss, alignment, GH(), on_report=reports.append)
    called = model
    if rank is not None:
        called, images, texts = DistributedDataParallel(model), images.chunk(2)[rank], texts.chunk(2)[rank]
    loss(**called(images, texts)).backward()
    return {"gradient": torch.cat([p.grad.flatten() for p in model.parameters()]), "tau": reports[0].weights}


def run_cases(rank, folder):
    torch.set_default_dtype(torch.float64)
    result = {"whole": training(folder, 4), "resumed": training(folder, 4, resume=f"{folder}/checkpoint-1")}
    # Nothing of DistributedDataParallel is left but that it made the ranks equal.
    strategy = DDPStrategy(process_group_backend="gloo", static_graph=True)
    sampler = DistributedSampler(tiny_lightning.rows(), 2, rank, shuffle=False)  # Lightning's would shuffle.
    result["lightning"] = lightning_training(f"{folder}/lightning", 2, devices=2, strategy=strategy, sampler=sampler)
    return result | {"step": step(rank), "sharded": sharded_training(f"{folder}/sharded", sampler)}


@pytest.fixture(scope="module")
def results(ranks, tmp_path_factory):
    """What each rank returned."""
    return ranks(run_cases, tmp_path_factory.mktemp("two"), group=False)


@pytest.fixture
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float64")
def test_a_trainer_in_two_processes_equals_one_on_the_joined_batch(results, tmp_path):
    expected = training(tmp_path, 8)
    assert all(entry["gh/conflict"] == 1 for entry in expected["log"])  # Or there would be nothing to get wrong.
    for result in results:
        found = result["whole"]
        torch.testing.assert_close(found["weights"], expected["weights"], rtol=1e-9, atol=1e-12)
        for entry, other in zip(found["log"], expected["log"], strict=True):
            assert entry == pytest.approx(other, rel=1e-5)
        assert found["evaluated"] == pytest.approx(expected["evaluated"], rel=1e-6)
    assert torch.equal(results[0]["whole"]["weights"], results[1]["whole"]["weights"])


def test_each_process_resumes_with_the_held_weights(results):
    for result in results:
        assert torch.equal(result["resumed"]["weights"], result["whole"]["weights"])


@pytest.mark.usefixtures("_float64")
def test_the_loss_of_open_clip_in_two_processes_equals_one_on_the_joined_batch(results):
    expected = step()
    assert (expected["tau"] != 1).all()
    for result in results:
        for key, value in expected.items():
            torch.testing.assert_close(result["step"][key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("_float64")
def test_a_training_of_lightning_in_two_processes_equals_one_on_the_joined_batch(results, tmp_path):
    expected = lightning_training(tmp_path, 4, devices=1)
    assert len(expected["log"]) == 4
    for result in results:
        found = result["lightning"]
        torch.testing.assert_close(found["weights"], expected["weights"], rtol=1e-9, atol=1e-12)
        for entry, other in zip(found["log"], expected["log"], strict=True):
            assert entry == pytest.approx(other, rel=1e-5)
    assert torch.equal(results[0]["lightning"]["weights"], results[1]["lightning"]["weights"])


@pytest.mark.usefixtures("_float64")
def test_a_training_of_lightning_with_sharded_parameters_equals_one_process(results, tmp_path):
    model = tiny_lightning.Adapted(GH(), period=2)
    tiny_lightning.fit(model, tmp_path)
    for result in results:
        torch.testing.assert_close(result["sharded"], tiny_lightning.weights(model), rtol=1e-9, atol=1e-12)
