"""Dual encoders: the built-in one, those of open_clip and transformers with tiny random weights, offline."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from gh_downstream.retrieval.encoders import DualEncoder, build_encoder
from gh_downstream.retrieval.encoders.tiny import START, TinyConfig, TinyDualEncoder
from gh_downstream.training.averaging import WeightAverage
from tests.retrieval.encoders.tiny_models import OPEN_CLIP_CONFIG, open_clip_folder, transformers_folder

TEXTS = ["a small red circle", "a large blue star above one green square", "zebra crossing", "", "red " * 40]
UNUSED = {"text.model.pooler.dense.weight", "text.model.pooler.dense.bias"}  # by ALIGN, whose BERT brings them
TINY: dict[str, Any] = {"image_size": 32, "width": 32, "layers": 1, "embed_dim": 16}


def _image(mode: str = "RGB", size: tuple[int, int] = (50, 40)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def _pixels(encoder: DualEncoder) -> Tensor:
    return torch.stack([encoder.preprocess(_image(size=size), train=False) for size in ((50, 40), (32, 32), (20, 70))])


def _spread_parameters(encoder: DualEncoder) -> None:
    """Move every parameter off its initial value: a biased or unit one hides that it was not saved."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(params=["tiny", "openclip", "openclip-bias", "hf-clip", "hf-siglip", "hf-align"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> DualEncoder:
    torch.manual_seed(0)
    folder = tmp_path / "model"
    if request.param == "tiny":
        return build_encoder("tiny", init="random", **TINY)
    if request.param.startswith("openclip"):
        pytest.importorskip("open_clip")
        bias = {"init_logit_bias": -10} if request.param.endswith("bias") else {}
        return build_encoder(f"openclip:local-dir:{open_clip_folder(folder, **bias)}", init="random")
    return build_encoder(f"hf:{transformers_folder(folder, request.param.removeprefix('hf-'))}")


def test_features_have_the_promised_shapes_and_differ(encoder: DualEncoder) -> None:
    encoder.eval()
    pixels, tokens = _pixels(encoder), encoder.tokenize(TEXTS)
    assert pixels.shape == (3, 3, encoder.image_size, encoder.image_size)
    assert tokens.dtype == torch.int64
    assert tokens.shape[0] == len(TEXTS)
    images, texts = encoder.encode_image(pixels), encoder.encode_text(tokens)
    assert images.shape == (3, encoder.embed_dim)
    assert texts.shape == (len(TEXTS), encoder.embed_dim)
    for features in (images, texts):
        assert torch.pdist(features).min() > 1e-4
        assert not torch.allclose(features.norm(dim=1), torch.ones(len(features)))
    assert encoder.logit_scale.shape == ()


def test_features_of_an_item_do_not_depend_on_its_batch(encoder: DualEncoder) -> None:
    encoder.eval()
    together = encoder.encode_text(encoder.tokenize(TEXTS))
    alone = torch.cat([encoder.encode_text(encoder.tokenize([text])) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_towers_hold_every_parameter_but_the_logits(encoder: DualEncoder) -> None:
    towers = {id(p) for name in ("image", "text") for p in encoder.get_submodule(name).parameters()}
    rest = {name for name, parameter in encoder.named_parameters() if id(parameter) not in towers}
    assert rest == {"logit_scale"} | ({"logit_bias"} if encoder.logit_bias is not None else set())


def test_every_tower_parameter_learns_from_the_contrastive_loss(encoder: DualEncoder) -> None:
    pixels, tokens = _pixels(encoder), encoder.tokenize(TEXTS[:3])
    images, texts = encoder.encode_image(pixels), encoder.encode_text(tokens)
    logits = encoder.logit_scale.exp() * normalize(images) @ normalize(texts).T
    cross_entropy(logits, torch.arange(3)).backward()
    assert {name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None} <= {"logit_bias"}
    assert {name for name, p in encoder.named_parameters() if not p.requires_grad} <= UNUSED
    assert encoder.logit_scale.grad is not None


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_every_mode_become_three_channels(encoder: DualEncoder, mode: str) -> None:
    assert encoder.preprocess(_image(mode), train=True).shape == (3, encoder.image_size, encoder.image_size)


def test_preprocessing_draws_from_the_generator_of_torch_alone(encoder: DualEncoder) -> None:
    first, second = (torch.manual_seed(3) and encoder.preprocess(_image(), train=True) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(encoder.preprocess(_image(), train=False), encoder.preprocess(_image(), train=False))


def test_encoder_survives_pickling_to_a_worker(encoder: DualEncoder) -> None:
    copy = pickle.loads(pickle.dumps(encoder))
    assert torch.equal(copy.preprocess(_image(), False), encoder.preprocess(_image(), False))
    assert torch.equal(copy.tokenize(TEXTS), encoder.tokenize(TEXTS))


def _reload(encoder: DualEncoder, folder: Path) -> DualEncoder:
    prefix = {"TinyDualEncoder": "tiny:", "OpenCLIPEncoder": "openclip:local-dir:", "TransformersEncoder": "hf:"}
    return build_encoder(f"{prefix[type(encoder).__name__]}{folder}")


def test_export_is_built_again_with_equal_features(encoder: DualEncoder, tmp_path: Path) -> None:
    _spread_parameters(encoder)
    encoder.export(tmp_path / "new" / "export")
    again = _reload(encoder, tmp_path / "new" / "export")
    assert again.training
    assert torch.equal(encoder.tokenize(TEXTS), again.tokenize(TEXTS))
    assert torch.equal(_pixels(encoder), _pixels(again))
    state, loaded = encoder.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys()
    for name in state:
        if name == "logit_scale":  # ALIGN's goes through an exponential.
            torch.testing.assert_close(state[name], loaded[name])
        else:
            assert torch.equal(state[name], loaded[name]), name
    encoder.eval(), again.eval()
    assert torch.equal(encoder.encode_image(_pixels(encoder)), again.encode_image(_pixels(again)))


def test_the_lines_that_load_an_export_do(
    encoder: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.export(tmp_path)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(encoder.loading(None), found)
    model = found.get("model", found.get("encoder"))
    assert not model.training
    assert sum(x.numel() for x in model.state_dict().values()) >= sum(x.numel() for x in encoder.state_dict().values())
    compile(encoder.loading("org/name"), "card", "exec")
    assert "org/name" in encoder.loading("org/name")


@pytest.mark.parametrize("model_cfg", [{}, {"custom_text": True}, {"init_logit_bias": -10}])
def test_open_clip_loads_the_export_with_equal_features(tmp_path: Path, model_cfg: dict[str, Any]) -> None:
    open_clip = pytest.importorskip("open_clip")
    folder = open_clip_folder(tmp_path / "model", **model_cfg)
    encoder = build_encoder(f"openclip:local-dir:{folder}", init="random").eval()
    _spread_parameters(encoder)
    encoder.export(tmp_path / "export")
    name = f"local-dir:{tmp_path / 'export'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    assert type(model).__name__ == ("CustomTextCLIP" if model_cfg.get("custom_text") else "CLIP")
    assert torch.equal(preprocess(_image()), encoder.preprocess(_image(), train=False))
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    assert torch.equal(tokens, encoder.tokenize(TEXTS))
    model.eval()
    torch.testing.assert_close(model.encode_image(_pixels(encoder)), encoder.encode_image(_pixels(encoder)))
    torch.testing.assert_close(model.encode_text(tokens), encoder.encode_text(tokens))
    assert torch.equal(model.logit_scale, encoder.logit_scale)
    assert (model.logit_bias is None) == (encoder.logit_bias is None)


def test_weights_of_open_clip_are_read_from_a_file_by_model_name(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    (tmp_path / "gh-tiny.json").write_text(json.dumps(OPEN_CLIP_CONFIG["model_cfg"]))
    open_clip.add_model_config(tmp_path / "gh-tiny.json")
    model = open_clip.create_model("gh-tiny").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    encoder = build_encoder(f"openclip:gh-tiny,{tmp_path / 'weights.pt'}").eval()
    pixels, tokens = _pixels(encoder), encoder.tokenize(TEXTS)
    torch.testing.assert_close(model.encode_image(pixels), encoder.encode_image(pixels))
    torch.testing.assert_close(model.encode_text(tokens), encoder.encode_text(tokens))
    encoder.export(tmp_path / "export")
    again = open_clip.create_model("gh-tiny", pretrained=str(tmp_path / "export" / "open_clip_model.safetensors"))
    torch.testing.assert_close(model.encode_text(tokens), again.eval().encode_text(tokens))


def test_open_clip_repository_is_read_from_the_cache_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("open_clip")
    constants = pytest.importorskip("huggingface_hub").constants
    original = build_encoder(f"openclip:local-dir:{open_clip_folder(tmp_path / 'model')}", init="random").eval()
    cache = tmp_path / "cache" / "models--org--name"
    revision = "0" * 40
    original.export(cache / "snapshots" / revision)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    encoder = build_encoder("openclip:hf-hub:org/name").eval()
    assert torch.equal(encoder.encode_image(_pixels(encoder)), original.encode_image(_pixels(original)))


@pytest.mark.parametrize("kind", ["clip", "siglip", "align"])
def test_transformers_gives_and_loads_back_equal_features(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    encoder = build_encoder(f"hf:{transformers_folder(tmp_path / 'model', kind)}").eval()
    _spread_parameters(encoder)
    encoder.export(tmp_path / "export")
    model = transformers.AutoModel.from_pretrained(tmp_path / "export").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "export")
    inputs = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=10, return_tensors="pt")
    tokens = inputs["input_ids"]
    masked = {"attention_mask": inputs["attention_mask"]} if kind == "align" else {}
    pixels = processor(images=_image(), return_tensors="pt")["pixel_values"]
    assert torch.equal(tokens, encoder.tokenize(TEXTS))
    assert torch.equal(pixels[0], encoder.preprocess(_image(), train=False))
    with torch.no_grad():
        output = model(input_ids=tokens, pixel_values=pixels, **masked)
        images, texts = encoder.encode_image(pixels), encoder.encode_text(tokens)
        logits = encoder.logit_scale.exp() * normalize(images) @ normalize(texts).T
        if encoder.logit_bias is not None:
            logits = logits + encoder.logit_bias
    torch.testing.assert_close(output.logits_per_image, logits)


@pytest.mark.parametrize("kind", ["clip", "align"])
def test_padding_does_not_change_the_text_features(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = transformers_folder(tmp_path / "model", kind)
    encoder = build_encoder(f"hf:{folder}").eval()
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(folder)(["a red star"], return_tensors="pt")
    assert inputs["attention_mask"].all()
    pixels = _pixels(encoder)[:1]
    expected = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], pixel_values=pixels)
    features = normalize(encoder.encode_text(encoder.tokenize(["a red star"])))
    torch.testing.assert_close(features, expected.text_embeds)


def test_checkpoint_in_half_precision_is_trained_and_exported_in_single(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = transformers_folder(tmp_path / "model", "clip")
    transformers.AutoModel.from_pretrained(folder).half().save_pretrained(folder)
    encoder = build_encoder(f"hf:{folder}")
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    _spread_parameters(encoder)
    encoder.export(tmp_path / "export")
    again = build_encoder(f"hf:{tmp_path / 'export'}")
    assert all(torch.equal(*pair) for pair in zip(encoder.parameters(), again.parameters(), strict=True))


def test_random_transformers_need_the_configuration_alone(tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "model", "siglip", weights=False)
    with pytest.raises(FileNotFoundError, match=rf"weights of 'hf:{folder}' not found: looked in {folder}"):
        build_encoder(f"hf:{folder}")
    assert build_encoder(f"hf:{folder}", init="random").embed_dim == 32


def test_incomplete_weights_of_transformers_are_an_error(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    folder = transformers_folder(tmp_path / "model", "clip")
    weights = safetensors.load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    safetensors.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 of its parameters.*visual_projection\.weight"):
        build_encoder(f"hf:{folder}")


def test_tokenizer_with_no_vocabulary_is_an_error(tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "model", "clip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    # transformers 5 builds an empty tokenizer, 4 fails to open its files.
    with pytest.raises((ValueError, FileNotFoundError), match=rf"tokenizer .*{folder}"):
        build_encoder(f"hf:{folder}")


def test_image_processor_of_another_size_is_an_error(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = transformers_folder(tmp_path / "model", "siglip")
    transformers.SiglipImageProcessor(size={"height": 48, "width": 48}).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"\(3, 48, 48\).* 32"):
        build_encoder(f"hf:{folder}")


def test_captions_are_cut_where_the_tokenizer_says(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = transformers_folder(tmp_path / "model", "align")
    transformers.AutoTokenizer.from_pretrained(folder, model_max_length=6).save_pretrained(folder)
    assert build_encoder(f"hf:{folder}").tokenize(TEXTS).shape == (len(TEXTS), 6)


def test_siglip_2_of_variable_resolution_is_an_error(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.AutoConfig.for_model("siglip2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"NaFlex.*hf:google/siglip2-base-patch16-224"):
        build_encoder(f"hf:{tmp_path}")


def test_models_of_another_kind_are_an_error(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="type 'bert'; supported: clip, siglip, align"):
        build_encoder(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("openclip:ViT-B-32,laion2b_s34b_b79k", "'openclip:ViT-B-32,laion2b_s34b_b79k' not found: looked in .*hub"),
        ("openclip:ViT-B-32,no/such.pt", "no file .*/no/such.pt, and not one of the tags of ViT-B-32 .*laion2b"),
        ("openclip:hf-hub:org/name", "'openclip:hf-hub:org/name' not found: looked in .*hub"),
        ("openclip:local-dir:no/such", "no open_clip_config.json in /.*/no/such"),
        ("hf:org/name", "'hf:org/name' not found: looked in .*hub"),
        ("hf:/no/such", "no config.json in /no/such"),
        ("tiny:no/such", "no tiny_config.json in /.*/no/such"),
    ],
)
def test_missing_models_are_named_with_the_place(spec: str, message: str) -> None:
    pytest.importorskip("open_clip")
    pytest.importorskip("transformers")
    with pytest.raises(FileNotFoundError, match=message):
        build_encoder(spec)


def test_folder_of_open_clip_without_weights_is_not_started_at_random(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    folder = open_clip_folder(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=f"no weights .* in {folder}.*init: random"):
        build_encoder(f"openclip:local-dir:{folder}")


def test_folder_of_open_clip_without_its_tokenizer_is_named(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    text = {"hf_model_name": str(tmp_path), "hf_tokenizer_name": "bert-base-uncased"}
    folder = open_clip_folder(tmp_path / "model", text_cfg=text)
    missing = f"no tokenizer of transformers in {folder}.*: save 'bert-base-uncased'"
    with pytest.raises(FileNotFoundError, match=missing):
        build_encoder(f"openclip:local-dir:{folder}", init="random")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("resnet", {}, "unknown encoder 'resnet': use 'tiny'"),
        ("openclip:", {}, "unknown encoder"),
        ("openclip:ViT-B-23", {}, "no model 'ViT-B-23'; close ones: .*ViT-B-32"),
        ("openclip:ViT-B-32", {}, "names no weights: .*TAG-or-FILE.*init: random"),
        ("openclip:ViT-B-32,openai", {"init": "random"}, "names weights, but init is 'random'"),
        ("openclip:coca_ViT-B-32", {"init": "random"}, "writes captions"),
        ("openclip:ViT-B-32", {"width": 32}, "takes no options, got width"),
        ("tiny", {"widht": 32}, "widht: unknown option of encoder 'tiny'; it has image_size.* width"),
        ("tiny", {}, "'tiny' has no pretrained weights: set init to 'random'"),
        ("tiny", {"init": "random", "image_size": 40}, "multiple of patch_size"),
        ("tiny", {"init": "random", "width": 80}, "multiple of 32"),
        ("tiny", {"init": "random", "width": 0}, "width must be at least 1, got 0"),
        ("tiny", {"init": "random", "embed_dim": 1.5}, "embed_dim must be a whole number, got 1.5"),
        ("tiny", {"init": "random", "layers": None}, "layers must be a whole number, got None"),
        ("tiny:folder", {"init": "random"}, "has trained weights"),
        ("tiny", {"init": "zeros"}, "init must be"),
    ],
)
def test_wrong_specifications_are_named(spec: str, options: dict[str, Any], message: str) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(ValueError, match=message):
        build_encoder(spec, **options)


@pytest.mark.parametrize(
    ("model", "weights", "right"),
    [
        ("ViT-B-32", "openai", "ViT-B-32-quickgelu,openai"),
        ("ViT-B-16", "dfn2b", "ViT-B-16-quickgelu,dfn2b"),
        ("RN50", "cc12m", "RN50-quickgelu,cc12m"),
        ("ViT-B-32", "vit_b_32-quickgelu-laion400m_e32-46683a32.pt", "ViT-B-32-quickgelu,.*laion400m_e32-46683a32.pt"),
        (
            "ViT-B-32",
            "models--timm--vit_base_patch32_clip_224.openai/a/m.safetensors",
            "ViT-B-32-quickgelu,.*openai/a/m",
        ),
        ("ViT-B-32-quickgelu", "CLIP-ViT-B-32-laion2B-s34B-b79K/m.bin", "ViT-B-32,.*b79K/m.bin"),
    ],
)
def test_weights_that_were_trained_with_another_activation_are_refused(
    model: str, weights: str, right: str, tmp_path: Path
) -> None:
    pytest.importorskip("open_clip")
    if "." in weights:
        file = tmp_path / weights
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"not looked at")
        weights = str(file)
    with pytest.raises(ValueError, match=rf"the weights .* were trained with (Quick)?GELU, .*: use 'openclip:{right}"):
        build_encoder(f"openclip:{model},{weights}")


def test_a_torchscript_archive_is_named_as_such(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    with pytest.raises(ValueError, match=rf"{path} is a TorchScript archive, .*'openclip:ViT-B-32-quickgelu,openai'"):
        build_encoder(f"openclip:ViT-B-32,{path}")


def test_captions_of_siglip_2_are_in_small_letters(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = transformers_folder(tmp_path / "model", "siglip")
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *"abdgoDA\u2581"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    backend.save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    settings = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "model_max_length": 64} | names
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    encoder = build_encoder(f"hf:{folder}")
    assert torch.equal(encoder.tokenize(["A Dog", "DADA"]), encoder.tokenize(["a dog", "dada"]))
    assert not torch.equal(encoder.tokenize(["a dog"]), encoder.tokenize(["a bog"]))


def test_siglip_1_reads_captions_with_its_sentencepiece_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = transformers_folder(tmp_path / "model", "siglip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a dog", "a red dog", "a bog"] * 20),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=20,
        hard_vocab_limit=False,
    )
    transformers.SiglipTokenizer(str(tmp_path / "spiece.model")).save_pretrained(folder)
    encoder = build_encoder(f"hf:{folder}")
    encoder.export(tmp_path / "exported")
    for built in (encoder, build_encoder(f"hf:{tmp_path / 'exported'}")):
        assert torch.equal(built.tokenize(["A Dog"]), encoder.tokenize(["a dog"]))
        assert not torch.equal(built.tokenize(["a dog"]), built.tokenize(["a bog"]))


def test_captions_of_clip_are_left_to_its_tokenizer(tmp_path: Path) -> None:
    encoder = build_encoder(f"hf:{transformers_folder(tmp_path / 'model', 'clip', words='Star star')}")
    assert not torch.equal(encoder.tokenize(["Star"]), encoder.tokenize(["star"]))


def test_texts_that_are_cut_are_counted(encoder: DualEncoder) -> None:
    length = encoder.tokenize(["red"]).shape[1]
    words = ["red " * count for count in range(1, length + 2)]
    whole = encoder.tokenize(["red " * (2 * length)])
    # What is cut reads like anything longer.
    cut = [torch.equal(encoder.tokenize([text]), whole) for text in words]
    special = 1 if isinstance(encoder, TinyDualEncoder) else 2
    assert [encoder.cut([text]) for text in words] == [int(count + special > length) for count in range(1, length + 2)]
    assert encoder.cut(words) == sum(count + special > length for count in range(1, length + 2)) <= sum(cut)


def test_code_of_a_repository_is_never_run(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}})
    )
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match=r"^configuration \(config.json\) of 'hf:.*' cannot be loaded: .*") as error:
        build_encoder(f"hf:{tmp_path}")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"damaged", {"another": torch.zeros(2)}], ids=["damaged", "of another model"])
def test_weights_in_a_file_that_do_not_fit_are_named(content: Any, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"the weights {path} do not fit 'openclip:RN50': they are damaged, or of an"):
        build_encoder(f"openclip:RN50,{path}")


def test_tiny_knows_scene_words_apart_and_ignores_case_and_punctuation() -> None:
    encoder = TinyDualEncoder(TinyConfig(**TINY))
    words = ["small", "large", "red", "green", "blue", "yellow", "circle", "square", "triangle", "star"]
    words += ["left", "right", "above", "below"]
    ids = encoder.tokenize(words)
    assert ids.shape == (len(words), 16)
    assert (ids[:, 0] == START).all()
    assert len(set(ids[:, 1].tolist())) == len(words)
    assert torch.equal(encoder.tokenize(["A Red, star!"]), encoder.tokenize(["a red star"]))
    assert int(encoder.tokenize(["zebra crossing"]).max()) < encoder.text.tokens.num_embeddings


def test_tiny_tells_the_order_of_words() -> None:
    encoder = TinyDualEncoder(TinyConfig(**TINY)).eval()
    one, other = encoder.encode_text(encoder.tokenize(["red star above blue circle", "blue circle above red star"]))
    assert (one - other).abs().max() > 1e-4


def test_tiny_gives_unknown_words_the_same_ids_in_every_process() -> None:
    code = (
        "from gh_downstream.retrieval.encoders import build_encoder; import sys;"
        "assert not {'open_clip', 'transformers'} & set(sys.modules);"
        "print(build_encoder('tiny', init='random').tokenize(['zebra crossing']).tolist())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout) == TinyDualEncoder(TinyConfig()).tokenize(["zebra crossing"]).tolist()


def test_tiny_learns_to_tell_pairs_apart() -> None:
    torch.manual_seed(0)
    encoder = TinyDualEncoder(TinyConfig(**TINY))
    colours = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 70, 220), "white": (255, 255, 255)}
    pixels = torch.stack([encoder.preprocess(Image.new("RGB", (32, 32), rgb), True) for rgb in colours.values()])
    tokens = encoder.tokenize([f"a {name} image" for name in colours])
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    for _ in range(60):
        images, texts = normalize(encoder.encode_image(pixels)), normalize(encoder.encode_text(tokens))
        loss = cross_entropy(encoder.logit_scale.exp() * images @ texts.T, torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (images @ texts.T).argmax(1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("library", "spec"), [("open_clip", "openclip:ViT-B-32"), ("transformers", "hf:folder")])
def test_a_missing_library_is_one_line_with_the_command(
    library: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"gh_downstream.retrieval.encoders.{library}", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'gh_downstream\[retrieval\]'"):
        build_encoder(spec, init="random")


def test_tiny_does_not_see_the_padding() -> None:
    encoder = TinyDualEncoder(TinyConfig(**TINY)).eval()
    tokens = encoder.tokenize(["a small red circle"])
    torch.testing.assert_close(encoder.encode_text(tokens), encoder.encode_text(tokens[:, :5]))


def test_the_average_of_its_weights_is_an_encoder(encoder: DualEncoder):
    """What is not trained stays the encoder's own: frozen layers, masks of minus infinity, indices of positions."""
    averaged = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    start = {name: value.clone() for name, value in encoder.state_dict().items()}
    average = WeightAverage(encoder, 0.9)
    _spread_parameters(encoder)
    average.update(1)
    for name, value in encoder.state_dict().items():
        expected = start[name].lerp(value, 9 / 11) if name in averaged else value
        torch.testing.assert_close(average.module.state_dict()[name], expected)
    with torch.no_grad():
        found, trained = (m.eval().encode_text(encoder.tokenize(TEXTS)) for m in (average.module, encoder))
    assert found.isfinite().all()
    assert not torch.allclose(found, trained)
