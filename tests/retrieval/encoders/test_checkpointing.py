"""Activation checkpointing in the towers: the same losses, gradients and weights of GH, and fewer activations kept."""

import copy
from pathlib import Path

import pytest
import torch

from gh_downstream import GH, Harmonizer
from gh_downstream.retrieval.encoders import LoRAConfig, add_lora, build_encoder
from gh_downstream.retrieval.model import RetrievalModel
from gh_downstream.retrieval.objectives import AlignmentTermConfig
from tests.retrieval.encoders.tiny_models import open_clip_folder, tokenizer, transformers_folder

TEXTS = ["a large blue star", "one green square above a star", "a star", "one blue square", "a green star", "blue"]
KINDS = ["tiny", "openclip", "openclip-timm", "openclip-hf", "hf-clip", "hf-siglip"]


def _encoder(kind: str, folder: Path):
    torch.manual_seed(0)
    if kind == "tiny":
        return build_encoder("tiny", init="random", image_size=32, width=32, layers=3, embed_dim=16)
    if kind.startswith("openclip"):
        options = {"vision_cfg": {"layers": 3}, "text_cfg": {"layers": 3}}
        if kind == "openclip-timm":
            options["vision_cfg"] = {"timm_model_name": "test_vit", "timm_pool": "avg"}
        if kind == "openclip-hf":
            transformers = pytest.importorskip("transformers")
            bert = transformers.BertConfig(
                vocab_size=20, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2
            )
            bert.save_pretrained(folder / "bert")
            options["text_cfg"] = {"hf_model_name": str(folder / "bert"), "hf_tokenizer_name": "bert"}
        model = open_clip_folder(folder / "model", **options)
        if kind == "openclip-hf":
            tokenizer().save_pretrained(model)
        return build_encoder(f"openclip:local-dir:{model}", init="random")
    return build_encoder(f"hf:{transformers_folder(folder / 'model', kind.removeprefix('hf-'), layers=3)}")


@pytest.fixture(params=KINDS)
def encoders(request, tmp_path):
    """An encoder, and a copy with checkpointing."""
    plain = _encoder(request.param, tmp_path)
    checkpointing = copy.deepcopy(plain)
    checkpointing.checkpoint_activations()
    return plain, checkpointing


def _step(encoder, micro_batch=None):
    """A harmonized step in which the two sides are opposed."""
    model = RetrievalModel(encoder, None, {"coral": AlignmentTermConfig(1.0, "both")}, micro_batch).train()
    harmonizer = Harmonizer(GH(), model.shared, model=model)
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(6, 3, 32, 32, generator=generator) for _ in range(2))
    tokens, groups = encoder.tokenize(TEXTS), torch.arange(6)
    torch.manual_seed(1)  # for dropout
    sides = model(source, tokens, groups, groups, target, tokens.flip(0))
    task = torch.stack(list(sides["task"].values())).sum()
    report = harmonizer.backward({"task": task, "alignment": sum(sides["alignment"].values()) - 0.5 * task})
    return sides, report, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_losses_gradients_and_weights_are_the_same(encoders, micro_batch):
    plain, checkpointing = (_step(encoder, micro_batch) for encoder in encoders)
    torch.testing.assert_close(checkpointing[0], plain[0])
    assert (plain[1].weights > 1).all()  # The sides are in conflict.
    torch.testing.assert_close(checkpointing[1].weights, plain[1].weights, rtol=1e-4, atol=0)
    assert checkpointing[2].keys() == plain[2].keys()
    for name, gradient in plain[2].items():
        tolerance = 1e-4 * gradient.abs().max().item()
        torch.testing.assert_close(checkpointing[2][name], gradient, rtol=0, atol=tolerance, msg=name)


def test_less_is_kept_for_the_backward_pass(encoders):
    kept = []
    for encoder in encoders:
        numbers = []
        for encode, x in (
            (encoder.encode_image, torch.zeros(6, 3, 32, 32)),
            (encoder.encode_text, encoder.tokenize(TEXTS)),
        ):
            saved = []
            with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x) or x, lambda x: x):
                encode(x)
            numbers.append(len(saved))
        kept.append(numbers)
    for without, checkpointing in zip(*kept, strict=True):
        assert checkpointing < 0.5 * without


@pytest.mark.parametrize("kind", ["tiny", "openclip", "hf-clip"])
def test_adapters_get_the_same_gradients(kind, tmp_path):
    pytest.importorskip("peft")
    plain = _encoder(kind, tmp_path)
    torch.manual_seed(2)
    add_lora(plain, LoRAConfig(targets=["*"]))
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    checkpointing = copy.deepcopy(plain)
    checkpointing.checkpoint_activations()
    expected, found = _step(plain)[2], _step(checkpointing)[2]
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item(), msg=name)


@pytest.mark.parametrize(("kind", "tower"), [("openclip-resnet", "image"), ("hf-align", "image")])
def test_a_tower_that_cannot_is_an_error(kind, tower, tmp_path):
    if kind == "hf-align":
        encoder = _encoder(kind, tmp_path)
    else:
        vision = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16}
        folder = open_clip_folder(tmp_path / "model", vision_cfg=vision)
        encoder = build_encoder(f"openclip:local-dir:{folder}", init="random")
    with pytest.raises(ValueError, match=f"checkpointing: the {tower} tower of this model has none"):
        encoder.checkpoint_activations()
