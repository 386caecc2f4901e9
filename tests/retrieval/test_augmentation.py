"""Augmentation by its keys: what it does to images, and that it is a function of seed, step and place alone."""

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch.testing import assert_close

from gh_downstream.cli.main import run
from gh_downstream.retrieval.augmentation import AugmentationConfig
from gh_downstream.retrieval.batches import StepBatches
from gh_downstream.retrieval.data import RetrievalDataset
from gh_downstream.retrieval.data.mini_scenes import make_mini_scenes
from gh_downstream.retrieval.encoders import build_encoder
from tests.retrieval.encoders.tiny_models import open_clip_folder, transformers_folder

EVERYTHING = {
    "scale": [0.3, 0.8],
    "hflip": 0.5,
    "color_jitter": [0.4, 0.4, 0.4, 0.1],
    "color_jitter_prob": 0.5,
    "gray_scale_prob": 0.3,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Files of smooth noise, wider than high."""
    folder, generator = tmp_path_factory.mktemp("images"), torch.Generator().manual_seed(0)
    for index in range(8):
        noise = torch.randint(256, (5, 7, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).resize((56, 40), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return [str(folder / f"{index}.png") for index in range(8)]


def tiny():
    return build_encoder("tiny", init="random", image_size=32, width=32, layers=1, embed_dim=8)


def batches(images, augmentation, encoder=None, seed=0):
    source = RetrievalDataset("source", images, [f"caption {k}" for k in range(8)], [*range(8)])
    target = RetrievalDataset("target", images, [], [])
    config = None if augmentation is None else AugmentationConfig(**augmentation)
    return StepBatches(source, target, encoder or tiny(), 4, seed, augmentation=config)


def pixels(found, side="source"):
    """The pixels of a batch by file, of batches that have each file once."""
    files = found["file_names"][:4] if side == "source" else found["file_names"][4:]
    return dict(zip(files, found[f"{side}_images"], strict=True))


@pytest.mark.parametrize("kind", ["openclip", "hf"])
def test_the_default_keys_are_what_the_encoders_do(images, tmp_path, kind):
    if kind == "openclip":
        encoder = build_encoder(f"openclip:local-dir:{open_clip_folder(tmp_path / 'model')}", init="random")
    else:
        encoder = build_encoder(f"hf:{transformers_folder(tmp_path / 'model', 'clip')}")
    own, ours = (batches(images, keys, encoder)(3, 0, 1) for keys in (None, {}))
    for side in ("source_images", "target_images"):
        assert_close(own[side], ours[side], rtol=0, atol=1e-6)
    still = torch.stack([encoder.preprocess(Image.open(name), False) for name in ours["file_names"][:4]])
    assert (own["source_images"] - still).abs().max() > 0.01
    # The crops do not depend on the number of processes.
    for keys in (None, {}):
        made = batches(images, keys, encoder)
        parts = [made(3, rank, 2)["source_images"] for rank in range(2)]
        assert torch.equal(torch.cat(parts), made(3, 0, 1)["source_images"])


def test_tiny_takes_images_as_they_are_unless_it_is_told(images):
    encoder = tiny()
    still = {name: encoder.preprocess(Image.open(name), False) for name in images}
    off = {"scale": None}
    for keys, changed in ((None, False), (off, False), ({}, True), (EVERYTHING, True)):
        for side in ("source", "target"):
            found = pixels(batches(images, keys, encoder)(0, 0, 1), side)
            assert all(torch.equal(x, still[name]) != changed for name, x in found.items())


def test_every_key_does_what_it_says(images):
    encoder = tiny()
    still = {name: encoder.preprocess(Image.open(name), False) for name in images}

    def made(**keys):
        return pixels(batches(images, {"scale": None} | keys, encoder)(0, 0, 1))

    assert all(torch.equal(x, still[name].flip(2)) for name, x in made(hflip=1).items())
    assert all(torch.equal(x[0], x[1]) for x in made(gray_scale_prob=1).values())
    jittered = made(color_jitter=[0, 0, 0, 0.5], color_jitter_prob=1)
    assert all(not torch.equal(x, still[name]) for name, x in jittered.items())
    assert all(
        torch.equal(x, still[name]) for name, x in made(color_jitter=[0.9] * 3 + [0.5], color_jitter_prob=0).items()
    )
    # A square crop of the whole height; the encoder stretches without it.
    whole = made(scale=[1, 1], ratio=[1, 1])
    for name, x in whole.items():
        assert_close(x, encoder.preprocess(Image.open(name).crop((8, 0, 48, 40)), False))


def test_images_are_a_function_of_seed_step_and_place_alone(images):
    made = batches(images, EVERYTHING)
    first = made(5, 0, 1)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    for step in (6, 5):
        again = made(step, 0, 1)
    assert torch.equal(torch.get_rng_state(), state)
    for side in ("source_images", "target_images"):
        assert torch.equal(first[side], again[side])
        parts = [made(5, rank, 2)[side] for rank in range(2)]
        assert torch.equal(torch.cat(parts), first[side])
    # The same file at another step, in another place, of the other domain, or by another seed.
    other = batches(images, EVERYTHING, seed=1)
    for found in (pixels(made(7, 0, 1)), pixels(made(6, 0, 1)), pixels(first, "target"), pixels(other(5, 0, 1))):
        for name in found.keys() & pixels(first).keys():
            assert not torch.equal(found[name], pixels(first)[name])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("augmentation") / "scenes"
    make_mini_scenes(root, train=24, target=24, val=4, test=4, size=32)
    return root


def words(scenes, output, *more):
    paths = {"source": "source/train.csv", "target": "target/train.jsonl"}
    paths |= {f"validation.{name}": f"{name}/test.{kind}" for name, kind in (("source", "csv"), ("target", "jsonl"))}
    small = ["encoder_options={image_size: 32, width: 32, layers: 1, embed_dim: 16}", "batch_size=8"]
    steps = ["optimizer={warmup_steps: 0, schedule: step}", "training.evaluate_every=null"]
    data = [f"{key}.path={scenes / path}" for key, path in paths.items()]
    return ["train", "--config", "retrieval/mini", *data, *small, *steps, f"output={output}", *more]


def weights(folder):
    return torch.load(folder / "last.pt", weights_only=True)["model"]


def test_a_training_resumes_bit_for_bit_with_any_number_of_workers(scenes, tmp_path):
    keys = "augmentation={" + ", ".join(f"{key}: {value}" for key, value in EVERYTHING.items()) + "}"
    for name, steps, workers in (("whole", 4, 0), ("parts", 2, 0), ("parts", 4, 2)):
        AcceleratorState._reset_state(True)
        assert run(words(scenes, tmp_path / name, keys, f"training.steps={steps}", f"training.workers={workers}")) == 0
    AcceleratorState._reset_state(True)
    assert run(words(scenes, tmp_path / "plain", "training.steps=4")) == 0
    whole, parts, plain = (weights(tmp_path / name) for name in ("whole", "parts", "plain"))
    assert all(torch.equal(whole[name], x) for name, x in parts.items())
    assert any(not torch.equal(whole[name], x) for name, x in plain.items())


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ("scale: [0, 1]", "augmentation: scale[0] must be above 0"),
        ("scale: [0.9, 1.1]", "augmentation: scale[1] must be above 0 and at most 1"),
        ("scale: [1.0, 0.9]", "augmentation: scale takes two numbers, the least and the largest"),
        ("scale: [0.9]", "augmentation: scale takes two numbers"),
        ("ratio: [0, 1]", "augmentation: ratio[0] must be above 0"),
        ("ratio: []", "augmentation: ratio takes two numbers"),
        ("hflip: 2", "augmentation: hflip must be at least 0 and at most 1"),
        ("gray_scale_prob: -1", "augmentation: gray_scale_prob must be"),
        ("color_jitter_prob: .nan", "augmentation: color_jitter_prob must be finite"),
        ("color_jitter: [0.4]", "augmentation: color_jitter takes four numbers"),
        ("color_jitter: [0.4, 0.4, 0.4, 0.6]", "augmentation: color_jitter takes four numbers"),
        ("color_jitter: [-1, 0, 0, 0]", "augmentation: color_jitter[0] must be at least 0"),
        ("horizontal_flip: 0.5", "unknown key augmentation.horizontal_flip"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(scenes, tmp_path, capsys, keys, named):
    assert run(words(scenes, tmp_path / "out", f"augmentation={{{keys}}}")) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("error: ")
    assert named in line
