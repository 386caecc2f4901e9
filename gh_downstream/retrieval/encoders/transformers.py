"""Dual encoders of Hugging Face transformers, versions 4 and 5: CLIP, SigLIP and ALIGN."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image as Images
from PIL.Image import Image
from torch import Tensor, nn

from gh_downstream.retrieval.encoders.lora import merged_state_dict
from gh_downstream.retrieval.encoders.protocol import DualEncoder, check_vocabulary, checkpoint_transformers

try:
    from torchvision.transforms import InterpolationMode, RandomResizedCrop
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    from gh_downstream.training.hub import load_configuration, load_part
except ImportError as error:
    raise ImportError("encoder 'hf' needs transformers: pip install 'gh_downstream[retrieval]'") from error

MODEL_TYPES = ("clip", "siglip", "align")
"""What a configuration calls them; the checkpoints of SigLIP 2 with a fixed resolution are ``siglip`` too."""

_PREFIXES = {
    "image.model.": "vision_model.",
    "image.projection.": "visual_projection.",
    "text.model.": "text_model.",
    "text.projection.": "text_projection.",
}


class _Tower(nn.Module):
    """A tower of transformers and the projection that ends it, if it has one.

    The padding is not masked: CLIP's text tower looks back only, and SigLIP's was trained to see the padding.
    """

    def __init__(self, inputs: str, model: nn.Module, projection: nn.Module | None) -> None:
        super().__init__()
        self.inputs, self.model, self.projection = inputs, model, projection

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.model(**{self.inputs: x}).pooler_output
        return pooled if self.projection is None else self.projection(pooled)


class _AlignTextTower(nn.Module):
    def __init__(self, model: nn.Module, projection: nn.Module, padding: int) -> None:
        super().__init__()
        self.model, self.projection, self.padding = model, projection, padding
        # BERT brings a layer over the first token that ALIGN does not use.
        model.pooler.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        # Unlike the others, BERT looks at every token that is not masked.
        states = self.model(input_ids=tokens, attention_mask=(tokens != self.padding).long()).last_hidden_state
        return self.projection(states[:, 0])


class TransformersEncoder(DualEncoder):
    """The towers of a CLIP, SigLIP or ALIGN of transformers, with its image processor and its tokenizer.

    The towers are called themselves, not ``get_image_features``, whose result is a tensor in transformers 4 and an
    output with ``pooler_output`` in 5.

    ALIGN divides the cosines by a ``temperature``: it is ``exp(-logit_scale)`` here, and what is exported.

    .. warning::
        The image tower of ALIGN is an EfficientNet with batch normalization. In training, the features of an image
        depend on the batch that it goes through the tower with. Source and target go through it one after the other, so
        that each domain is normalised by its own statistics, which takes a part of the shift away before any alignment
        sees it. With ``micro_batch`` the statistics are those of a chunk, and the losses not those of the whole batch;
        with several processes, those of a process. In evaluation one set of running statistics serves both domains.
        With transformers' momentum of 0.99, which is the weight of the **new** batch in torch, these are nearly those
        of the last batch, of the target where its images are aligned. Frozen layers, those beside adapters too, keep
        and use the statistics that they came with.

    Raises:
        ValueError: The tokenizer or the image processor does not fit the model.
    """

    library = "transformers"

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any) -> None:
        config = model.config
        bias = getattr(model, "logit_bias", None)
        text: nn.Module
        if config.model_type == "align":
            text = _AlignTextTower(model.text_model, model.text_projection, tokenizer.pad_token_id)
            scale = -model.temperature.detach().log()
        else:
            text = _Tower("input_ids", model.text_model, getattr(model, "text_projection", None))
            scale = model.logit_scale.detach().reshape(())  # SigLIP's are of shape [1]
        super().__init__(
            image=_Tower("pixel_values", model.vision_model, getattr(model, "visual_projection", None)),
            text=text,
            logit_scale=nn.Parameter(scale),
            logit_bias=None if bias is None else nn.Parameter(bias.detach().reshape(())),
            image_size=config.vision_config.image_size,
            embed_dim=config.vision_config.hidden_size if config.model_type == "siglip" else config.projection_dim,
        )
        self._config = config
        self._image_processor = image_processor
        self._tokenizer = tokenizer
        # ALIGN's tokenizer cuts at 64 tokens, its text tower could take 512.
        self._context_length = min(tokenizer.model_max_length, config.text_config.max_position_embeddings)
        # In transformers 4 the towers alone cannot be told to checkpoint. The model shares their modules.
        self._enable_checkpointing = partial(checkpoint_transformers, model)
        self._crop = RandomResizedCrop(
            self.image_size, scale=(0.9, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True
        )
        self._check(config.text_config.vocab_size)
        # SigLIP was trained on small letters. Its own tokenizer makes them; that of Gemma, which many checkpoints of
        # SigLIP 2 name, does not.
        self._lower = config.model_type == "siglip" and tokenizer("A")["input_ids"] != tokenizer("a")["input_ids"]

    def _check(self, vocabulary: int) -> None:
        check_vocabulary(self._tokenizer)
        if len(self._tokenizer) > vocabulary:
            raise ValueError(f"the tokenizer has {len(self._tokenizer)} tokens, but the model only {vocabulary}")
        shape = tuple(self.preprocess(Images.new("RGB", (self.image_size + 1, self.image_size)), train=False).shape)
        if shape != (3, self.image_size, self.image_size):
            raise ValueError(f"the image processor makes {shape}, but the model takes images of {self.image_size}")

    def preprocess(self, image: Image, train: bool) -> Tensor:
        """Return the processor's pixels ``[3, H, W]``; with ``train``, of a random crop of 90 % of the area or more."""
        image = image.convert("RGB")
        if train:
            image = self._crop(image)
        return self._image_processor(images=image, return_tensors="pt")["pixel_values"][0]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the token ids ``[N, L]``, int64, of texts, cut or padded to the context length of the model.

        SigLIP gets them in small letters.
        """
        length: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": self._context_length}
        return self._tokenizer(self._cleaned(texts), **length, return_tensors="pt")["input_ids"]

    def cut(self, texts: Sequence[str]) -> int:
        """Return how many texts :meth:`tokenize` cuts."""
        found = self._tokenizer(self._cleaned(texts), verbose=False)["input_ids"]
        return sum(len(ids) > self._context_length for ids in found)

    def _cleaned(self, texts: Sequence[str]) -> list[str]:
        return [text.lower() if self._lower else text for text in texts]

    def _checkpoint(self) -> None:
        self._enable_checkpointing()

    def export(self, folder: str | Path, repository: str | None = None) -> None:
        """Write a folder that ``AutoModel``, ``AutoImageProcessor`` and ``AutoTokenizer`` load."""
        model = AutoModel.from_config(self._config).float()  # the configuration may say half precision
        state = merged_state_dict(self, _PREFIXES)
        if self._config.model_type == "align":
            state["temperature"] = (-state.pop("logit_scale")).exp()
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        weights = {name: tensor.cpu().reshape(shapes[name]) for name, tensor in state.items()}
        model.load_state_dict(weights)
        model.save_pretrained(folder)
        self._image_processor.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)

    def loading(self, repository: str | None) -> str:
        """Return the lines that load an export, with its image processor and its tokenizer."""
        classes = {"model": "AutoModel", "processor": "AutoImageProcessor", "tokenizer": "AutoTokenizer"}
        lines = [f'{name} = {kind}.from_pretrained("{repository or "."}")' for name, kind in classes.items()]
        return "\n".join([f"from transformers import {', '.join(sorted(classes.values()))}", "", *lines])


def load_transformers(name: str, random: bool) -> TransformersEncoder:
    """Return the encoder of a folder that ``save_pretrained`` wrote, or of a repository of the hub.

    With ``random`` the weights stay random, and need not be there.

    Raises:
        ValueError: The model is none of CLIP, SigLIP and ALIGN, or the weights lack some of its parameters.
        FileNotFoundError: A part of the model is not in the place that was looked in.
    """
    config = load_configuration(f"hf:{name}", AutoConfig.from_pretrained)
    if config.model_type == "siglip2":
        raise ValueError(
            f"'hf:{name}' is a SigLIP 2 of variable resolution (NaFlex), which takes sequences of patches; use one of "
            "a fixed resolution, such as 'hf:google/siglip2-base-patch16-224'"
        )
    if config.model_type not in MODEL_TYPES:
        raise ValueError(f"'hf:{name}' is a model of type {config.model_type!r}; supported: {', '.join(MODEL_TYPES)}")
    processor = load_part(f"hf:{name}", "image processor", AutoImageProcessor.from_pretrained)
    tokenizer = load_part(f"hf:{name}", "tokenizer", AutoTokenizer.from_pretrained)
    if random:
        return TransformersEncoder(AutoModel.from_config(config, trust_remote_code=False).float(), processor, tokenizer)
    return TransformersEncoder(load_whole(name).train(), processor, tokenizer)


def load_whole(name: str, **options: Any) -> Any:
    """Load a model with all of its weights, in single precision.

    Args:
        name: A folder, or a repository of the hub.
        options: Of its class.

    Raises:
        ValueError: The weights lack some of its parameters; or as :func:`~gh_downstream.training.hub.load_part`.
    """
    model, info = load_part(f"hf:{name}", "weights", AutoModel.from_pretrained, output_loading_info=True, **options)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"the weights of 'hf:{name}' lack {len(missing)} of its parameters, which would be random: "
            + ", ".join(missing)
        )
    return model.float()
