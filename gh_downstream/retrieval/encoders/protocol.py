"""What the engine, the losses and the evaluation ask of a pair of an image and a text encoder."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor, nn

CHECKPOINTING = ("gradient_checkpointing", "grad_checkpointing")
"""Attributes by which modules of transformers, and of open_clip and timm, tell that they checkpoint."""


class DualEncoder(nn.Module, ABC):
    """An image tower and a text tower that end in one feature space, as in CLIP (Radford et al., arXiv 2103.00020).

    Every tower ends with its projection, so that ``image.*`` and ``text.*`` name all of its parameters.

    Args:
        image: Maps pixels of shape ``[N, 3, H, W]`` to features of shape ``[N, D]``.
        text: Maps token ids of shape ``[N, L]`` to features of shape ``[N, D]``.
        logit_scale: Scalar; the logits of the task loss are ``exp(logit_scale)`` times the cosine.
        logit_bias: Scalar added to the logits, as SigLIP does; None where the model has none.
        image_size: Side of the square images that :meth:`preprocess` returns, in pixels.
        embed_dim: Dimension ``D`` of the features.

    Attributes:
        library: What loads the export.
    """

    library = "gh_downstream"

    def __init__(
        self,
        image: nn.Module,
        text: nn.Module,
        logit_scale: nn.Parameter,
        logit_bias: nn.Parameter | None,
        image_size: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias
        self.image_size = image_size
        self.embed_dim = embed_dim

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return the features ``[N, D]``, not normalised, of pixels ``[N, 3, H, W]`` from :meth:`preprocess`."""
        return self.image(pixels)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return the features ``[N, D]``, not normalised, of token ids ``[N, L]`` from :meth:`tokenize`."""
        return self.text(tokens)

    @abstractmethod
    def preprocess(self, image: Image, train: bool) -> Tensor:
        """Return the pixels ``[3, H, W]`` of an image of any size and mode, normalised as the model was trained.

        With ``train`` the image may be augmented; the randomness is that of torch's global generator.
        """

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the token ids ``[N, L]``, int64, of texts; longer ones are cut at the model's context length ``L``."""

    @abstractmethod
    def cut(self, texts: Sequence[str]) -> int:
        """Return how many texts :meth:`tokenize` cuts."""

    def checkpoint_activations(self) -> None:
        """Compute the activations of the towers' blocks again in the backward pass instead of keeping them.

        Losses and gradients stay the same, memory and speed fall. Checkpointing is non-reentrant: under the reentrant
        kind the gradients of two losses cannot be taken one after the other. It works in training mode.

        Raises:
            ValueError: A tower has no checkpointing, as the ResNets of CLIP and the EfficientNet of ALIGN.
        """
        self._checkpoint()
        for name, tower in (("image", self.image), ("text", self.text)):
            if not any(getattr(module, flag, False) for module in tower.modules() for flag in CHECKPOINTING):
                raise ValueError(
                    f"checkpointing: the {name} tower of this model has none in its library; leave checkpointing out, "
                    "or set micro_batch"
                )

    @abstractmethod
    def _checkpoint(self) -> None:
        """Turn on the checkpointing of the library."""

    @abstractmethod
    def export(self, folder: str | Path, repository: str | None = None) -> None:
        """Write the model to a folder, which is made, so that its own library loads it back with equal features.

        Adapters (:func:`~gh_downstream.retrieval.encoders.add_lora`) are merged into the weights. The folder holds all
        that is needed, and may be moved.

        Args:
            folder: Where to.
            repository: ``OWNER/NAME`` of the hub that the folder will be uploaded to, if it will be.
        """

    @abstractmethod
    def loading(self, repository: str | None) -> str:
        """Return the lines of Python that load an export, from within its folder or from a repository of the hub."""


def checkpoint_transformers(model: Any) -> None:
    """Turn on the non-reentrant checkpointing of a model of transformers, under its name in 4 and 5 or in late 5."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def check_vocabulary(tokenizer: Any) -> None:
    """Refuse a tokenizer of transformers that was built without its files, and knows its special tokens alone."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(f"the tokenizer {tokenizer.name_or_path!r} has no vocabulary: its files are missing")
