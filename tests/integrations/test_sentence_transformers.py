"""The loss in the real SentenceTransformerTrainer: a step by hand, the plain training, the log, refusals."""

import pytest
import torch

pytest.importorskip("sentence_transformers")

import datasets
import tokenizers
import transformers
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    GlobalOrthogonalRegularizationLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch import nn

from gh_downstream import GH, Harmonizer, Sum
from gh_downstream.adaptation import mmd
from gh_downstream.integrations.report_log import ReportLog
from gh_downstream.integrations.sentence_transformers import HarmonizedLoss
from gh_downstream.integrations.transformers import GradientHarmonizationMixin

WORDS = ["red", "blue", "circle", "square", "dog", "sea", "map", "night"]
COLUMNS = {
    "anchor": [f"{a} {b}" for a, b in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True)],
    "positive": [f"{b} {a}" for a, b in zip(WORDS, WORDS[2:] + WORDS[:2], strict=True)],
    "target": [f"{a} {a} sea" for a in WORDS],
}
RATE = 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT of one layer with a tokenizer of a few words."""
    folder = tmp_path_factory.mktemp("bert")
    table = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    sizes = {"vocab_size": len(table), "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 8}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def model(folder):
    return SentenceTransformer(str(folder), device="cpu")


def alignment(columns):
    """A discrepancy of the anchors to the target that also unlearns the pairs."""
    return mmd(columns[0], columns[2]) + nn.functional.cosine_similarity(columns[0], columns[1]).mean()


def trainer_of(model, loss, folder, kind=SentenceTransformerTrainer, **changes):
    settings = {"per_device_train_batch_size": 4, "max_steps": 2, "logging_steps": 1, "learning_rate": RATE}
    settings |= {"optim": "sgd", "lr_scheduler_type": "constant", "save_strategy": "no", "report_to": "none"}
    settings |= {"use_cpu": True, "disable_tqdm": True, "max_grad_norm": 0}
    args = SentenceTransformerTrainingArguments(str(folder), **(settings | changes))
    return kind(model, args, train_dataset=datasets.Dataset.from_dict(COLUMNS), loss=loss)


def logged(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def harmonized(model, **changes):
    settings = {"task": MultipleNegativesRankingLoss(model), "alignment": alignment, "weighting": "gh"}
    return HarmonizedLoss(model, **(settings | {"task_columns": 2} | changes))


class SumLoss(nn.Module):
    """The same two losses as sentence-transformers documents it, without harmonization."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.task = MultipleNegativesRankingLoss(model)

    def forward(self, sentence_features, labels):
        embeddings = [self.model(features)["sentence_embedding"] for features in sentence_features]
        task = self.task.compute_loss_from_embeddings(embeddings[:2], labels)
        return {"gh/loss/task": task, "gh/loss/alignment": alignment(embeddings)}


def by_hand(model):
    """The weights after one step on all texts with GH at the embeddings written out, and the losses."""
    columns = [model(model.tokenize(list(texts)))["sentence_embedding"] for texts in COLUMNS.values()]
    task = MultipleNegativesRankingLoss(model).compute_loss_from_embeddings(columns[:2], None)
    second = alignment(columns)
    of_task = torch.autograd.grad(task, columns, retain_graph=True, materialize_grads=True)
    of_second = torch.autograd.grad(second, columns, retain_graph=True, materialize_grads=True)
    g1, g2 = (torch.cat([g.flatten() for g in gradients]) for gradients in (of_second, of_task))
    assert g1 @ g2 < 0  # They are in conflict, or there would be nothing to get wrong.
    tau = [1 - (g1 @ g2) / g1.square().sum(), 1 - (g1 @ g2) / g2.square().sum()]
    torch.autograd.backward(columns, [tau[0] * a + tau[1] * b for a, b in zip(of_second, of_task, strict=True)])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= RATE * parameter.grad
    return weights(model), task.item(), second.item()


def test_a_step_equals_a_step_by_hand(folder, model, tmp_path, caplog):
    caplog.set_level("INFO")
    trainer = trainer_of(
        model, harmonized(model, on_report=ReportLog(1)), tmp_path, max_steps=1, per_device_train_batch_size=8
    )
    trainer.train()
    expected, task, second = by_hand(SentenceTransformer(str(folder), device="cpu").train())
    torch.testing.assert_close(weights(trainer.model), expected, rtol=1e-4, atol=1e-6)
    (entry,) = logged(trainer)
    # sentence-transformers rounds to four digits.
    assert entry["gh/loss/task"] == pytest.approx(task, abs=1e-4)
    assert entry["gh/loss/alignment"] == pytest.approx(second, abs=1e-4)
    assert entry["loss"] == pytest.approx(task + second, abs=1e-4)
    assert "harmonization, backward pass 1: gh/cosine -" in caplog.text


def test_the_weighting_sum_is_the_plain_training(folder, tmp_path):
    trained = []
    for loss in (SumLoss, lambda model: harmonized(model, weighting=Sum()), harmonized):
        model = SentenceTransformer(str(folder), device="cpu")
        # A loss may be given as a function of the model.
        trainer = trainer_of(model, loss, tmp_path, gradient_accumulation_steps=2)
        trainer.train()
        trained.append(trainer)
    plain, summed, other = (weights(trainer.model) for trainer in trained)
    # To rounding: autograd adds what arrives at the embeddings in another order.
    torch.testing.assert_close(summed, plain, rtol=1e-5, atol=1e-7)
    assert (other - plain).abs().max() > 1e-3
    for key in ("loss", "gh/loss/task", "gh/loss/alignment"):
        assert logged(trained[0])[0][key] == pytest.approx(logged(trained[1])[0][key], rel=1e-6)


def test_two_losses_of_the_library_on_the_same_columns(model, tmp_path):
    loss = harmonized(model, alignment=GlobalOrthogonalRegularizationLoss(model), task_columns=None)
    trainer = trainer_of(model, loss, tmp_path)
    trainer.eval_dataset = trainer.train_dataset
    trainer.train()
    parts = {key for key in logged(trainer)[0] if key.startswith("gh/loss/alignment/")}
    assert len(parts) == 2
    evaluated = trainer.evaluate()
    assert torch.isfinite(torch.tensor(evaluated["eval_loss"]))


def test_the_mixin_harmonizes_the_same_trainer_at_the_parameters(folder, tmp_path):
    class Exact(GradientHarmonizationMixin, SentenceTransformerTrainer):
        def compute_losses(self, model, inputs):
            features, labels = self.collect_features(inputs)
            return {name.removeprefix("gh/loss/"): loss for name, loss in self.loss(features, labels).items()}

        def create_harmonizer(self, model):
            return Harmonizer(GH(), shared=model, model=model)

    model = SentenceTransformer(str(folder), device="cpu")
    trainer = trainer_of(model, SumLoss(model), tmp_path, kind=Exact, max_steps=1, per_device_train_batch_size=8)
    trainer.train()
    expected = SentenceTransformer(str(folder), device="cpu").train()
    features = [expected.tokenize(list(texts)) for texts in COLUMNS.values()]
    losses = SumLoss(expected)(features, None)
    Harmonizer(GH(), shared=expected).backward(
        {"task": losses["gh/loss/task"], "alignment": losses["gh/loss/alignment"]}
    )
    with torch.no_grad():
        for parameter in expected.parameters():
            if parameter.grad is not None:
                parameter -= RATE * parameter.grad
    torch.testing.assert_close(weights(trainer.model), weights(expected), rtol=1e-4, atol=1e-6)
    assert logged(trainer)[0]["gh/cosine"] < 0


def test_mistakes_are_told(model, tmp_path):
    cached = CachedMultipleNegativesRankingLoss(model)
    whole = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), [8, 4])
    for loss in (cached, whole):
        name = type(loss).__name__
        with pytest.raises(ValueError, match=f"the task loss {name} embeds the texts itself"):
            harmonized(model, task=loss)
        with pytest.raises(ValueError, match=f"the alignment loss {name} embeds the texts itself"):
            harmonized(model, alignment=loss)
    with pytest.raises(ValueError, match=r"gh\+\+\+"):
        harmonized(model, weighting="gh+++")
    with pytest.raises(ValueError, match="task_columns must be at least 1, got 0"):
        harmonized(model, task_columns=0)
    for apart in (
        lambda columns: columns[2].square().mean(),
        lambda columns: alignment([column.detach() for column in columns]),
    ):
        with pytest.raises(ValueError, match="task and alignment share no column"):
            trainer_of(model, harmonized(model, alignment=apart), tmp_path).train()
