"""Two gloo processes against one on the joined batch, with encoders of open_clip and transformers."""

import pytest
import torch

from gh_downstream import GHPlusPlus, Harmonizer
from gh_downstream.retrieval.encoders import build_encoder
from gh_downstream.retrieval.model import RetrievalModel
from tests.retrieval.encoders.tiny_models import open_clip_folder, transformers_folder
from tests.retrieval.toy_encoder import flatten, side_sums, terms

pytestmark = pytest.mark.slow

CAPTIONS = ("a large blue star", "one green square", "a square above one star", "a large green square")
LIBRARIES = {
    "open_clip": ("openclip:local-dir:", ("image.proj", "text.text_projection")),
    "transformers": ("hf:", ("image.projection.weight", "text.projection.weight")),
}
"""How an encoder in a folder is named, and its last parameters."""


def prepared(library, folder):
    """A model on its way, whose starting model has the opposite similarities, which opposes the task; and a batch."""
    spec, projections = LIBRARIES[library]
    torch.manual_seed(0)
    init = "random" if library == "open_clip" else "pretrained"
    encoder = build_encoder(f"{spec}{folder / library}", init=init).double()
    model = RetrievalModel(encoder, alignment=terms("distillation", on="both"))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)
    tokens = encoder.tokenize(CAPTIONS)
    batch = {
        "source_images": images,
        "source_tokens": tokens,
        "source_groups": torch.arange(4),
        "source_text_groups": torch.arange(4),
    }
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.001)
    for _ in range(10):
        optimizer.zero_grad()
        sum(model(**batch)["task"].values()).backward()
        optimizer.step()
    model.zero_grad()
    model.alignment.start.load_state_dict(encoder.state_dict())
    for name in projections:
        model.alignment.start.get_parameter(name).neg_()
    return model, batch


def step(model, batch):
    """Losses, gradients and weights of one step."""
    sides = model(**batch)
    losses = {name: loss.detach() for name, loss in flatten(sides).items()}
    report = Harmonizer(GHPlusPlus(), model.shared, model=model).backward(side_sums(sides))
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"losses": losses, "gradients": gradients, "weights": report.weights}


def step_of_rank(rank, start):
    return {
        library: step(model, {name: x.chunk(2)[rank] for name, x in batch.items()})
        for library, (model, batch) in start.items()
    }


@pytest.fixture(scope="module")
def results(ranks, tmp_path_factory):
    """The model and the batch of each library, and what each rank made of them."""
    folder = tmp_path_factory.mktemp("encoders")
    open_clip_folder(folder / "open_clip")
    torch.manual_seed(2)
    transformers_folder(folder / "transformers", "clip")
    start = {library: prepared(library, folder) for library in LIBRARIES}
    return start, ranks(step_of_rank, start)


@pytest.mark.parametrize("library", LIBRARIES)
def test_two_processes_equal_one_on_the_joined_batch(results, library):
    start, found = results
    expected = step(*start[library])
    assert (expected["weights"] != 1).all()  # The sides are in conflict, or there would be nothing to get wrong.
    for of_rank in found:
        ours = of_rank[library]
        torch.testing.assert_close(ours["weights"], expected["weights"], rtol=1e-6, atol=1e-9)
        assert ours["gradients"].keys() >= expected["gradients"].keys()
        for name, gradient in ours["gradients"].items():
            wanted = expected["gradients"].get(name, torch.zeros_like(gradient))
            torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    for name, loss in expected["losses"].items():  # Each rank has the rows of its own share.
        mean = torch.stack([of_rank[library]["losses"][name] for of_rank in found]).mean()
        torch.testing.assert_close(mean, loss, rtol=1e-6, atol=1e-9)
