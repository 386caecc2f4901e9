"""A tiny RT-DETR, and its Trainer, which aligns what its backbone makes of source and target."""

import torch
from transformers import RTDetrConfig, RTDetrForObjectDetection, Trainer

from gh_downstream import Harmonizer
from gh_downstream.integrations.transformers import GradientHarmonizationMixin


def detr():
    torch.manual_seed(0)
    backbone = {
        "model_type": "rt_detr_resnet",
        **{"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"},
        "out_indices": [2, 3, 4],
    }
    widths = {
        **{"d_model": 16, "encoder_hidden_dim": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_labels": 3},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_layers": 2, "num_queries": 10},
    }
    channels = {"encoder_in_channels": [16, 24, 32], "decoder_in_channels": [16] * 3}
    return RTDetrForObjectDetection(RTDetrConfig(backbone_config=backbone, **channels, **widths))


def scenes(number):
    """Images of both domains and a box in each of the source."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.3]])
    return [
        {
            "source": torch.rand(3, 64, 64, generator=generator),
            "target": torch.rand(3, 64, 64, generator=generator) * 0.5,
            "labels": {"class_labels": torch.tensor([i % 3]), "boxes": boxes},
        }
        for i in range(number)
    ]


def collate(samples):
    pixels = {side: torch.stack([sample[side] for sample in samples]) for side in ("source", "target")}
    return pixels | {"labels": [sample["labels"] for sample in samples]}


class DetrTrainer(GradientHarmonizationMixin, Trainer):
    def compute_losses(self, model, inputs):
        task = model(pixel_values=inputs["source"], labels=inputs["labels"]).loss
        maps = [model.model.backbone.model(inputs[side]).feature_maps[-1] for side in ("source", "target")]
        source, target = (level.mean(dim=(0, 2, 3)) for level in maps)
        return {"task": task, "alignment": (source - target).square().sum()}

    def create_harmonizer(self, model):
        return Harmonizer("gh++", shared=model.model.backbone, model=model)
