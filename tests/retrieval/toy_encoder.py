"""A dual encoder of a few hundred parameters, and batches for it."""

import torch
from torch import nn

from gh_downstream.retrieval.model import RetrievalModel
from gh_downstream.retrieval.objectives import AlignmentTermConfig, TaskConfig

TERMS = ("mmd", "coral", "domain", "distillation")


class ToyEncoder(nn.Module):
    """Two towers of two layers; images of 4 x 4 pixels, texts of 5 tokens out of 20."""

    embed_dim = 8

    def __init__(self, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 8))
        self.text = nn.Sequential(nn.EmbeddingBag(20, 12), nn.Tanh(), nn.Linear(12, 8))
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.logit_bias = nn.Parameter(torch.tensor(-2.0)) if bias else None

    def encode_image(self, pixels):
        return self.image(pixels)

    def encode_text(self, tokens):
        return self.text(tokens)


def terms(*names, on="image", weight=1.0, noise=None):
    return {name: AlignmentTermConfig(weight, on, noise) for name in names}


def model(alignment=None, task="contrastive", **options):
    torch.manual_seed(1)
    task = TaskConfig(task) if isinstance(task, str) else task
    return RetrievalModel(ToyEncoder(), task, alignment, **options).double()


def with_waves(x):
    """A perturbation that is a function of the pixels: no random numbers, the same for a part of the batch."""
    return x + 0.5 * torch.sin(40 * x)


def batch(images=8, captions=1, seed=0, target=True):
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(images) + 100

    def pixels():
        return torch.randn(images, 3, 4, 4, generator=generator, dtype=torch.float64)

    def tokens(n):
        return torch.randint(20, (n, 5), generator=generator)

    found = {
        "source_images": pixels(),
        "source_tokens": tokens(images * captions),
        "source_groups": groups,
        "source_text_groups": groups.repeat_interleave(captions),
    }
    return found | ({"target_images": 2 * pixels() + 1, "target_tokens": tokens(images) // 2} if target else {})


def flatten(sides):
    return {name: loss for losses in sides.values() for name, loss in losses.items()}


def total(sides):
    return sum(flatten(sides).values())


def side_sums(sides):
    return {side: sum(losses.values()) for side, losses in sides.items()}


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}
