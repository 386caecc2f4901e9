"""Folders with tiny models of open_clip and transformers, random, made offline."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = "a large blue star above one green square"

OPEN_CLIP_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"},
}


def open_clip_folder(folder: Path, **model_cfg: Any) -> Path:
    """A folder with the configuration of an open_clip model, without weights; sections are merged key by key."""
    folder.mkdir()
    config = json.loads(json.dumps(OPEN_CLIP_CONFIG))
    for key, value in model_cfg.items():
        section = config["model_cfg"].get(key)
        config["model_cfg"][key] = section | value if isinstance(section, dict) else value
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def tokenizer(words: str = WORDS) -> Any:
    """A tokenizer of whole words."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    table = {word: index for index, word in enumerate(["<pad>", "<unk>", "<start>", "<end>", *words.split()])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    )


def transformers_folder(
    folder: Path,
    kind: str,
    weights: bool = True,
    words: str = WORDS,
    size: int = 32,
    width: int = 32,
    layers: int = 1,
    length: int = 10,
) -> Path:
    """A folder that ``save_pretrained`` wrote: a ``clip``, ``siglip`` or ``align``, image processor, tokenizer."""
    transformers = pytest.importorskip("transformers")
    text = {"vocab_size": 20 + len(words.split()), "hidden_size": width, "intermediate_size": 3 * width // 2}
    text |= {"num_hidden_layers": layers, "num_attention_heads": 2, "max_position_embeddings": length}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    vision = {"image_size": size, "patch_size": 16, "hidden_size": width, "intermediate_size": 3 * width // 2}
    vision |= {"num_hidden_layers": layers, "num_attention_heads": 2}
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=width // 2)
        processor = transformers.CLIPImageProcessor(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_mean=[0.1] * 3,
            image_std=[0.3] * 3,
        )
        model = transformers.CLIPModel(config)
    elif kind == "siglip":
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        processor = transformers.SiglipImageProcessor(size={"height": size, "width": size}, image_mean=[0.1] * 3)
        model = transformers.SiglipModel(config)
        torch.nn.init.constant_(model.logit_bias, -10.0)
    else:
        vision = {"image_size": size, "width_coefficient": 0.5, "depth_coefficient": 1.0, "hidden_dim": width // 2}
        vision |= {"kernel_sizes": [3, 3], "in_channels": [32, 16], "out_channels": [16, width], "strides": [1, 2]}
        vision |= {"num_block_repeats": [1, 1], "expand_ratios": [1, 6], "initializer_range": 0.2}
        config = transformers.AlignConfig(
            text_config=text, vision_config=vision, projection_dim=width // 2, temperature_init_value=0.07
        )
        processor = transformers.EfficientNetImageProcessor(
            size={"height": size, "width": size}, do_center_crop=False, include_top=False, image_mean=[0.1] * 3
        )
        model = transformers.AlignModel(config)
        model.vision_model(torch.rand(8, 3, size, size))  # gives batch normalization its statistics
    (model.save_pretrained if weights else config.save_pretrained)(folder)
    processor.save_pretrained(folder)
    tokenizer(words).save_pretrained(folder)
    return folder
