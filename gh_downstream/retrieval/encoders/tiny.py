"""A small dual encoder that needs no download: for tests, demonstrations and first steps on one CPU core."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image, Resampling
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint

from gh_downstream.files import atomic_file, write_atomically
from gh_downstream.harmonization.checks import check_numbers
from gh_downstream.retrieval.encoders.lora import merged_state_dict
from gh_downstream.retrieval.encoders.protocol import DualEncoder

CONFIG_FILE = "tiny_config.json"
WEIGHTS_FILE = "tiny_model.pt"

PADDING, START = 0, 1
WORDS = (
    "a an the and of in on to with no is are one two three photo picture image scene background "
    "small large big little tall wide left right above below under over next beside between inside "
    "red green blue yellow orange purple pink cyan magenta brown white black gray grey "
    "circle square triangle star rectangle diamond cross ring"
)
WORD_IDS = {word: index for index, word in enumerate(WORDS.split(), start=START + 1)}
FIRST_HASHED = START + 1 + len(WORD_IDS)
HASHED_WORDS = 512


class _Block(nn.Module):
    """A pre-norm transformer block; the names are those of ``torch.nn.TransformerEncoderLayer``.

    That one has a fast path in evaluation, which reads the weights of its layers past their ``forward``, and so past
    adapters around them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, max(1, width // 32), batch_first=True)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        x = x + self.self_attn(y, y, y, key_padding_mask=padding, need_weights=False)[0]
        return x + self.linear2(gelu(self.linear1(self.norm2(x))))


class _Blocks(nn.ModuleList):
    """Blocks one after the other; with checkpointing only their inputs are kept for the backward pass."""

    gradient_checkpointing = False

    def __init__(self, width: int, layers: int) -> None:
        super().__init__(_Block(width) for _ in range(layers))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        for block in self:
            x = checkpoint(block, x, padding, use_reentrant=False) if self.gradient_checkpointing else block(x, padding)
        return x


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of a tiny encoder.

    Attributes:
        image_size: Side of the images, in pixels; a multiple of ``patch_size``.
        patch_size: Side of a patch, in pixels.
        width: Channels of both towers: a multiple of 32, or less than 64; every 32 make an attention head.
        layers: Transformer blocks of the image tower.
        text_layers: Transformer blocks of the text tower; None for as many as ``layers``.
        embed_dim: Dimension of the features.
        context_length: Longest caption in words, the token that starts it included.
        logit_scale: Initial scale of the logits (not its logarithm).
        logit_bias: Initial bias of the logits, which SigLIP's sigmoid loss needs (-10 there, with a scale of 10); None
            for no bias.

    Raises:
        ValueError: The image size or the width does not divide.
    """

    image_size: int = 64
    patch_size: int = 16
    width: int = 64
    layers: int = 2
    text_layers: int | None = 1
    embed_dim: int = 64
    context_length: int = 16
    logit_scale: float = 1 / 0.07
    logit_bias: float | None = None

    def __post_init__(self) -> None:
        check_numbers(self, ">= 1", logit_scale="> 0", logit_bias="")
        for field in fields(self):
            if field.type == "int" and not isinstance(value := getattr(self, field.name), int):
                raise ValueError(f"{field.name} must be a whole number, got {value!r}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size, got {self.image_size} and {self.patch_size}"
            )
        if self.width >= 64 and self.width % 32:
            raise ValueError(f"width must be a multiple of 32 or less than 64, got {self.width}")


class _ImageTower(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        width, patches = config.width, (config.image_size // config.patch_size) ** 2
        self.patches = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.summary = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positions = nn.Parameter(width**-0.5 * torch.randn(patches + 1, width))
        self.before = nn.LayerNorm(width)
        self.blocks = _Blocks(width, config.layers)
        self.after = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.embed_dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.summary.expand(len(x), 1, -1).to(x.dtype), x], dim=1)
        x = self.before(x + self.positions)
        return self.projection(self.after(self.blocks(x)[:, 0]))


class _TextTower(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        width = config.width
        self.tokens = nn.Embedding(FIRST_HASHED + HASHED_WORDS, width)
        self.positions = nn.Parameter(0.01 * torch.randn(config.context_length, width))
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = _Blocks(width, config.layers if config.text_layers is None else config.text_layers)
        self.after = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.embed_dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        return self.projection(self.after(self.blocks(x, tokens == PADDING)[:, 0]))


class TinyDualEncoder(DualEncoder):
    """A Vision Transformer and a text transformer of a few layers, always randomly initialised.

    Words are whole words: a fixed list has its own ids, all others share 512 ids by a hash, so that two rare words may
    have the same. Images are stretched to a square and are not augmented.
    """

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(
            image=_ImageTower(config),
            text=_TextTower(config),
            logit_scale=nn.Parameter(torch.tensor(math.log(config.logit_scale))),
            logit_bias=None if config.logit_bias is None else nn.Parameter(torch.tensor(float(config.logit_bias))),
            image_size=config.image_size,
            embed_dim=config.embed_dim,
        )
        self.config = config

    def preprocess(self, image: Image, train: bool) -> Tensor:
        """Return the pixels ``[3, H, W]``, stretched to a square, in -1 to 1; ``train`` changes nothing."""
        square = image.convert("RGB").resize((self.image_size, self.image_size), Resampling.BICUBIC)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the word ids ``[N, L]``, int64, of texts, cut or padded to the context length."""
        tokens = torch.full((len(texts), self.config.context_length), PADDING)
        for row, text in zip(tokens, texts, strict=True):
            ids = _word_ids(text)[: self.config.context_length]
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def cut(self, texts: Sequence[str]) -> int:
        """Return how many texts :meth:`tokenize` cuts."""
        return sum(len(_word_ids(text)) > self.config.context_length for text in texts)

    def _checkpoint(self) -> None:
        for module in self.modules():
            if isinstance(module, _Blocks):
                module.gradient_checkpointing = True

    def export(self, folder: str | Path, repository: str | None = None) -> None:
        """Write the arguments and the weights to a folder; ``build_encoder("tiny:FOLDER")`` reads them."""
        folder = Path(folder)
        write_atomically(folder / CONFIG_FILE, json.dumps(asdict(self.config), indent=2) + "\n")
        with atomic_file(folder / WEIGHTS_FILE) as file:
            torch.save(merged_state_dict(self, {}), file)

    def loading(self, repository: str | None) -> str:
        """Return the lines that load an export."""
        lines = ["from gh_downstream.retrieval.encoders import build_encoder", "", "encoder = {}.eval()"]
        folder = '"tiny:."'
        if repository:
            lines.insert(0, "from huggingface_hub import snapshot_download")
            folder = f'"tiny:" + snapshot_download("{repository}")'
        return "\n".join(lines).format(f"build_encoder({folder})")

    @classmethod
    def load(cls, folder: str | Path) -> TinyDualEncoder:
        """Return the encoder that :meth:`export` wrote.

        Raises:
            FileNotFoundError: The folder has no such file.
        """
        folder = Path(folder)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"no {name} in {folder.resolve()}: it is not the export of a tiny encoder")
        encoder = cls(TinyConfig(**json.loads((folder / CONFIG_FILE).read_text())))
        encoder.load_state_dict(torch.load(folder / WEIGHTS_FILE, map_location="cpu", weights_only=True))
        return encoder


def _word_ids(text: str) -> list[int]:
    return [START, *map(_word_id, re.findall(r"\w+", text.casefold()))]


def _word_id(word: str) -> int:
    # Python's own hash of a string differs from process to process.
    return WORD_IDS.get(word, FIRST_HASHED + zlib.crc32(word.encode()) % HASHED_WORDS)
