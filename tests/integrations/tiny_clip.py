"""A CLIP of transformers with a few thousand parameters, batches for it, and a Trainer with losses that conflict."""

import torch
from torch.nn.functional import cross_entropy
from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments

from gh_downstream import Harmonizer
from gh_downstream.adaptation import mmd
from gh_downstream.integrations.transformers import GradientHarmonizationMixin
from gh_downstream.retrieval.objectives import gather_with_gradient

TEXT = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"max_position_embeddings": 6, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
VISION |= {"num_attention_heads": 2}
SHARED = ["vision_model", "visual_projection"]


def clip(dtype=torch.float64):
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8, logit_scale_init_value=1.0))
    return model.to(dtype)


def pairs(n=16, dtype=torch.float64):
    """Pairs of the source with an image of the target each."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, n, 3, 8, 8, generator=generator, dtype=dtype)
    tokens = torch.cat([torch.randint(3, 20, (n, 5), generator=generator), torch.full((n, 1), 2)], dim=1)
    return [
        {"pixel_values": image, "input_ids": token, "target": 2 * target + 1}
        for image, token, target in zip(pixels[0], tokens, pixels[1], strict=True)
    ]


def collate(rows):
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    # The Trainer counts labels, to divide by their number where a loss takes it: these losses do not.
    return {"target": batch.pop("target"), "source": batch, "labels": torch.zeros(len(rows), dtype=torch.int64)}


def losses_of(model, inputs):
    """A contrastive loss of the whole batch, and an alignment that also unlearns which text an image has."""
    outputs = model(**inputs["source"])
    images, texts = gather_with_gradient(outputs.image_embeds), gather_with_gradient(outputs.text_embeds)
    features = model.get_image_features(inputs["target"])
    target = gather_with_gradient(getattr(features, "pooler_output", features))  # A tensor in transformers 4.
    logits = model.logit_scale.exp() * images @ texts.T
    belongs = torch.arange(len(images))
    of_image, of_text = cross_entropy(logits, belongs), cross_entropy(logits.T, belongs)
    return {"task": (of_image + of_text) / 2, "alignment": 0.1 * mmd(images, target) - 0.5 * of_image}


class AlignedTrainer(GradientHarmonizationMixin, Trainer):
    """Keeps the batches that it was given."""

    def __init__(self, *args, weighting, period=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.weighting, self.period = weighting, period
        self.batches = []

    def compute_losses(self, model, inputs):
        self.batches.append(inputs)
        return losses_of(model, inputs)

    def create_harmonizer(self, model):
        return Harmonizer(self.weighting, SHARED, model=model, period=self.period)


def arguments(folder, **changes):
    settings = {"per_device_train_batch_size": 4, "max_steps": 3, "logging_steps": 1, "learning_rate": 0.05}
    settings |= {"optim": "sgd", "lr_scheduler_type": "constant", "save_strategy": "no", "report_to": "none"}
    settings |= {"use_cpu": True, "remove_unused_columns": False, "disable_tqdm": True}
    return TrainingArguments(str(folder), **(settings | changes))


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
