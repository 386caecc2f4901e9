"""The examples of docs/integrations.md run as they stand there."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

TEXT = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()


def example(section):
    (code,) = re.findall(rf"^## {section}\n.*?^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    return code


def run(section, **given):
    """Run the example of a section with the names that it takes as given; return all names."""
    names = {"__name__": "example", **given}
    exec(compile(example(section), f"docs/integrations.md, {section}", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def test_lightning():
    pytest.importorskip("lightning")
    loaders = [
        DataLoader(TensorDataset(torch.randn(8, 6), torch.arange(8) % 10), batch_size=4) for _ in ("source", "target")
    ]
    names = run("Lightning", backbone=nn.Linear(6, 512), source_loader=loaders[0], target_loader=loaders[1])
    trainer = names["trainer"]
    assert trainer.global_step == 20
    assert trainer.lightning_module.joint_loss.harmonizer.report.tasks == ("alignment", "task")
    assert list(Path().rglob("*.ckpt"))


def test_transformers():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = transformers.BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=6, num_labels=2)
    model = transformers.BertForSequenceClassification(config)
    before = model.bert.embeddings.word_embeddings.weight.detach().clone()

    def collate(rows):
        tokens = torch.stack(rows)
        source = {"input_ids": tokens[:, 0], "labels": tokens[:, 0, 0] % 2}
        return {"source": source, "target": {"input_ids": tokens[:, 1]}}

    run("transformers", model=model, dataset=list(torch.randint(20, (8, 2, 5))), collate=collate)
    assert not torch.equal(model.bert.embeddings.word_embeddings.weight.cpu(), before)


@pytest.mark.parametrize("section", ["open_clip_train", "sentence-transformers"])
def test_the_others_import_what_there_is(section):
    lines = re.findall(r"^from gh_downstream.*", example(section), re.MULTILINE)
    assert len(lines) > 1
    for line in lines:
        exec(line)
