"""Two gloo processes that share an evaluation, against one process."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch.overrides import TorchFunctionMode

from gh_downstream.retrieval.data import RetrievalDataset
from gh_downstream.retrieval.encoders import build_encoder
from gh_downstream.retrieval.encoding import evaluate_model
from gh_downstream.training import process_state

WORDS = ["red", "green", "blue", "circle", "square", "star", "left", "right", "above", "below", "large", "small"]
SIZES = {"uneven": (11, 25), "one batch": (3, 4), "fewer than processes": (1, 1), "last is missing": (9, 9)}
BATCH = 4


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps the processes of a process's first use."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def data_sets(folder):
    """Images of noise with captions of a few words each."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, (images, texts) in SIZES.items():
        paths = []
        for index in range(images):
            paths.append(str(folder / f"{name} {index}.png"))
            pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(paths[-1])
        owners = sorted([*range(images), *torch.randint(images, (texts - images,), generator=generator).tolist()])
        captions = [" ".join(WORDS[k] for k in torch.randint(12, (5,), generator=generator)) for _ in owners]
        found[name] = RetrievalDataset(name, paths, captions, owners)
    Path(paths[-1]).unlink()
    images = found["uneven"].images
    names, owners = [WORDS[k % 5] for k in range(len(images))], list(range(len(images)))
    found["classes"] = RetrievalDataset("classes", images, names, owners, templates=["a {}.", "one {}"])
    return found


class Blocks(TorchFunctionMode):
    """Counts the blocks of similarities, which alone are in float64."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.Tensor.matmul and args[0].dtype == torch.float64
        return function(*args, **(kwargs or {}))


def evaluate(folder):
    """Results by data set, how many images and captions this process encoded, and how many blocks it compared."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = build_encoder("tiny", init="random", width=32, layers=1, embed_dim=8).eval()
    encoded = {"image": 0, "text": 0}

    def count(kind):
        def hook(module, inputs):
            encoded[kind] += len(inputs[0])

        return hook

    for kind in encoded:
        getattr(encoder, kind).register_forward_pre_hook(count(kind))
    with Blocks() as blocks:
        results = evaluate_model(encoder, data_sets(folder), batch_size=BATCH, max_skipped=0.2)
    results = {name: result.as_dict() for name, result in results.items()}
    return {"results": results, "encoded": encoded, "blocks": blocks.count}


def evaluate_in_rank(rank, folder):
    assert process_state().num_processes == 2
    (folder / str(rank)).mkdir()
    return evaluate(folder / str(rank))


def test_two_processes_share_the_encoding_and_find_the_same(ranks, tmp_path):
    found = ranks(evaluate_in_rank, tmp_path, group=False)
    expected = evaluate(tmp_path)
    assert found[0]["results"] == found[1]["results"] == expected["results"]
    assert 0 < expected["results"]["uneven"]["metrics"]["mean_recall"] < 100
    missing = expected["results"]["last is missing"]
    assert (missing["num_images"], missing["num_texts"]) == (8, 8)
    assert expected["results"]["classes"]["num_texts"] == 5
    assert expected["encoded"] == {"image": 11 + 3 + 1 + 8 + 11, "text": 25 + 4 + 1 + 8 + 5 * 2}
    # Batches of 4: two of the three, four of the seven, the only ones of small sets, and that of the missing image not.
    assert found[0]["encoded"] == {"image": 8 + 3 + 1 + 8 + 8, "text": 16 + 4 + 1 + 4 + 8}
    assert found[1]["encoded"] == {"image": 3 + 3, "text": 9 + 4 + 2}
    # Classes are few: each process compares all images with them.
    assert [part["blocks"] for part in (expected, *found)] == [5, 5, 1]
