"""Classify texts of another style without their labels: transformers.Trainer with two losses, a minute on the CPU.

python examples/transformers_trainer.py gh++:adaptive
"""

import sys

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel, Trainer, TrainingArguments

from gh_downstream import Harmonizer
from gh_downstream.adaptation import mmd
from gh_downstream.integrations.transformers import GradientHarmonizationMixin


class AdaptedTrainer(GradientHarmonizationMixin, Trainer):
    def __init__(self, *args, weighting: str = "gh++", **kwargs):
        super().__init__(*args, **kwargs)
        self.weighting = weighting

    def compute_losses(self, model: PreTrainedModel, inputs: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        source = model(**inputs["source"], output_hidden_states=True)
        target = model(**inputs["target"], output_hidden_states=True)
        features, others = source.hidden_states[-1][:, 0], target.hidden_states[-1][:, 0]
        return {"task": source.loss, "alignment": 0.1 * mmd(features, others)}

    def create_harmonizer(self, model: PreTrainedModel) -> Harmonizer:
        return Harmonizer(self.weighting, shared=model.base_model, model=model)


def texts(number: int, style: range) -> tuple[Tensor, Tensor]:
    """Texts of 12 tokens: 4 of the words of their class, 1 of the other class, the rest in a style."""
    labels = torch.randint(2, (number,))
    words = 2 + 10 * torch.cat([labels[:, None].expand(-1, 4), 1 - labels[:, None]], dim=1)
    words = words + torch.randint(10, (number, 5))
    tokens = torch.cat([words, torch.randint(style.start, style.stop, (number, 6))], dim=1)
    tokens = tokens.gather(1, torch.rand(number, 11).argsort(dim=1))
    return torch.cat([torch.ones(number, 1, dtype=torch.int64), tokens], dim=1), labels


def collate(rows: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, dict[str, Tensor]]:
    source, labels, target = (torch.stack(column) for column in zip(*rows, strict=True))
    return {"source": {"input_ids": source, "labels": labels}, "target": {"input_ids": target}}


def main(weighting: str) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=62, max_position_embeddings=12, **size))
    (source, labels), (target, _) = texts(2048, range(22, 42)), texts(2048, range(42, 62))
    settings = {"per_device_train_batch_size": 64, "num_train_epochs": 10, "learning_rate": 2e-3, "logging_steps": 80}
    # The Trainer's loop has one loader: an item is a text of the source, its label, and a text of the target.
    settings |= {"save_strategy": "no", "report_to": "none", "use_cpu": True, "remove_unused_columns": False}
    arguments = TrainingArguments("outputs/examples/transformers", **settings)
    dataset = list(zip(source, labels, target, strict=True))
    AdaptedTrainer(model, arguments, weighting=weighting, train_dataset=dataset, data_collator=collate).train()

    unseen, truth = texts(2048, range(42, 62))
    right = (model.eval()(unseen).logits.argmax(dim=1) == truth).float().mean()
    print(f"accuracy on the target: {100 * right:.1f} %")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "gh++")
