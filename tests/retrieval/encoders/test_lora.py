"""Low-rank adapters in the encoders: what is adapted, trained and shared, and what the exports hold."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from gh_downstream import GH, Harmonizer
from gh_downstream.retrieval.encoders import LoRAConfig, add_lora, build_encoder
from gh_downstream.retrieval.encoders.lora import merged_state_dict
from gh_downstream.retrieval.model import RetrievalModel
from gh_downstream.retrieval.objectives import AlignmentTermConfig
from tests.retrieval.encoders.tiny_models import open_clip_folder, transformers_folder

pytest.importorskip("peft")

TEXTS = ["a large blue star", "one green square above a star", "a star"]
EVERYTHING = ["*"]
TARGETS = {
    "tiny": ["*.self_attn", "*.linear?", "text.tokens"],
    "openclip": ["*.attn", "*.mlp.*"],
    "hf-clip": ["*.q_proj", "*.v_proj", "image.projection"],
    "hf-siglip": ["*.q_proj", "*.fc?", "*.head.attention"],
    "hf-align": ["*.squeeze_excite.*", "*.intermediate.dense"],
}


def _encoder(kind: str, folder: Path):
    torch.manual_seed(0)
    if kind == "tiny":
        return build_encoder("tiny", init="random", image_size=32, width=32, layers=2, embed_dim=16)
    if kind == "openclip":
        return build_encoder(f"openclip:local-dir:{open_clip_folder(folder / 'model')}", init="random")
    return build_encoder(f"hf:{transformers_folder(folder / 'model', kind.removeprefix('hf-'))}")


def _inputs(encoder):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 3, 32, 32, generator=generator), encoder.tokenize(TEXTS)


@torch.no_grad()
def _features(encoder):
    pixels, tokens = _inputs(encoder)
    return encoder.encode_image(pixels), encoder.encode_text(tokens)


def _move_adapters(encoder):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(params=TARGETS)
def adapted(request, tmp_path):
    """An encoder with adapters, and one without."""
    plain = _encoder(request.param, tmp_path).eval()
    encoder = copy.deepcopy(plain)
    add_lora(encoder, LoRAConfig(targets=TARGETS[request.param], rank=4, alpha=8))
    return encoder, plain


def test_an_encoder_starts_from_the_features_that_it_had(adapted):
    encoder, plain = adapted
    torch.testing.assert_close(_features(encoder), _features(plain))


def test_adapters_alone_train_and_are_inside_the_towers(adapted):
    encoder, _ = adapted
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_" in name and name.partition(".")[0] in ("image", "text") for name in trained)


@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_of_every_adapter_is_that_of_the_merged_weight(adapted, training):
    encoder, plain = adapted
    _move_adapters(encoder)
    plain.load_state_dict(merged_state_dict(encoder, {}))
    for model in (encoder, plain):
        model.train(training)
        pixels, tokens = _inputs(model)
        torch.manual_seed(0)  # for dropout
        images, texts = model.encode_image(pixels), model.encode_text(tokens)
        (normalize(images) @ normalize(texts).T).diagonal().sum().backward()
    checked = set()
    for name, module in encoder.named_modules():
        if hasattr(module, "lora_A"):
            (down, up), gradient = _matrices(module), plain.get_parameter(f"{name}.{_adapted(module)}").grad.flatten(1)
            if isinstance(module.get_base_layer(), torch.nn.Embedding):
                gradient = gradient.T
            scale = 8 / 4
            for parameter, expected in (
                (up, scale * gradient @ down.flatten(1).T),
                (down, scale * up.flatten(1).T @ gradient),
            ):
                tolerance = 1e-3 * expected.abs().max().item()
                assert tolerance > 1e-9
                torch.testing.assert_close(parameter.grad.flatten(1), expected, rtol=0, atol=tolerance)
                checked.add(id(parameter))
    assert checked == {id(parameter) for parameter in encoder.parameters() if parameter.requires_grad}


def _adapted(module):
    return getattr(module, "parameter_name", "weight")


def _matrices(module):
    """The factors of an update: its product is ``up @ down``."""
    if module.lora_embedding_A:
        return module.lora_embedding_A["default"], module.lora_embedding_B["default"]
    return module.lora_A["default"].weight, module.lora_B["default"].weight


def test_export_has_merged_weights_that_load_as_if_there_had_been_no_adapters(adapted, tmp_path):
    encoder, plain = adapted
    _move_adapters(encoder)
    encoder.export(tmp_path / "export")
    prefix = {"TinyDualEncoder": "tiny:", "OpenCLIPEncoder": "openclip:local-dir:", "TransformersEncoder": "hf:"}
    again = build_encoder(f"{prefix[type(encoder).__name__]}{tmp_path / 'export'}").eval()
    assert not any("lora" in name for name in again.state_dict())
    for found, expected, old in zip(_features(again), _features(encoder), _features(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (found - old).abs().max() > 1e-3


def test_open_clip_loads_the_merged_export(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    encoder = _encoder("openclip", tmp_path).eval()
    add_lora(encoder, LoRAConfig(targets=EVERYTHING))
    _move_adapters(encoder)
    encoder.export(tmp_path / "export")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'export'}").eval()
    pixels, tokens = _inputs(encoder)
    images, texts = _features(encoder)
    torch.testing.assert_close(model.encode_image(pixels), images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.encode_text(tokens), texts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_loads_the_merged_export(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    encoder = _encoder(f"hf-{kind}", tmp_path).eval()
    add_lora(encoder, LoRAConfig(targets=EVERYTHING))
    _move_adapters(encoder)
    encoder.export(tmp_path / "export")
    model = transformers.AutoModel.from_pretrained(tmp_path / "export").eval()
    pixels, tokens = _inputs(encoder)
    with torch.no_grad():
        output = model(input_ids=tokens, pixel_values=pixels)
    images, texts = _features(encoder)
    torch.testing.assert_close(output.image_embeds, normalize(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.text_embeds, normalize(texts), rtol=1e-4, atol=1e-5)


def test_the_harmonizer_shares_the_adapters_of_a_tower(tmp_path):
    encoder = _encoder("tiny", tmp_path)
    add_lora(encoder, LoRAConfig(targets=["*.self_attn", "*.linear1"]))
    terms = {"mmd": AlignmentTermConfig(1.0), "distillation": AlignmentTermConfig(1.0)}
    model = RetrievalModel(encoder, alignment=terms)
    harmonizer = Harmonizer(GH(), model.shared, model=model)
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    pixels, tokens = _inputs(encoder)
    for step in range(3):
        sides = model(pixels, tokens, torch.arange(3), torch.arange(3), pixels.flip(0) + 0.5)
        if step == 0:  # The starting model is the encoder as it was.
            assert sides["alignment"]["loss_distillation_image"].item() == pytest.approx(0, abs=1e-6)
        harmonizer.backward({side: sum(losses.values()) for side, losses in sides.items()})
        optimizer.step()
        optimizer.zero_grad()
    assert sides["alignment"]["loss_distillation_image"] > 1e-6
    trained = [p for p in harmonizer.shared if p.requires_grad]
    assert {id(p) for p in trained} == {
        id(p) for n, p in model.named_parameters() if "encoder.image" in n and ".lora_" in n
    }
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())


def test_dropout_is_drawn_in_training_alone(tmp_path):
    encoder = _encoder("tiny", tmp_path)
    add_lora(encoder, LoRAConfig(targets=["image.*.linear1"], dropout=0.5))
    _move_adapters(encoder)
    first, second = _features(encoder)[0], _features(encoder)[0]
    assert not torch.equal(first, second)
    encoder.eval()
    torch.testing.assert_close(_features(encoder)[0], _features(encoder)[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["*.q_proj"]}, r"'\*\.q_proj' fits no module that can be adapted; there are image\.patches, .*"),
        ({"targets": ["*", "*.out_proj"]}, r"out_proj' fits no module.* image\.blocks\.\*\.self_attn, .*linear1"),
        ({"targets": ["*.norm1"]}, "norm1' fits no module"),
        ({"targets": ["*"], "dropout": 0.1}, r"dropout has to be 0 for attention such as image\.blocks\.0\.self_attn"),
        ({"targets": []}, "names no module"),
        ({"targets": ["*"], "rank": 0}, "rank must be at least 1"),
        ({"targets": ["*"], "alpha": 0}, "alpha must be at least 1"),
        ({"targets": ["*"], "dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ],
)
def test_mistakes_are_named(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        add_lora(_encoder("tiny", tmp_path), LoRAConfig(**options))


def test_without_peft_the_error_is_one_line_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'gh_downstream\[lora\]'"):
        add_lora(_encoder("tiny", tmp_path), LoRAConfig(targets=EVERYTHING))
