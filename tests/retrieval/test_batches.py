"""Images that batches did without, counted over the steps and over two gloo processes."""

import logging

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from gh_downstream.data.skipped import SkippedImages
from gh_downstream.retrieval.batches import SkippedImagesCallback, StepBatches
from gh_downstream.retrieval.data import RetrievalDataset
from gh_downstream.retrieval.objectives import positive_pairs
from gh_downstream.training import Trainer, build_optimizer, load_checkpoint, read_metrics
from tests.kill import lines_of
from tests.training import toy


@pytest.fixture(autouse=True)
def fresh_accelerate():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


class FaultyBatches(toy.Batches):
    """Rank r cannot read image r at step 1 and image 10 + r at step 5, nor image 20 at step 7."""

    def __call__(self, step, rank, ranks):
        faulty = {1: rank, 5: 10 + rank, 7: 20}.get(step)
        faults = {} if faulty is None else {"skipped": {"source": {f"{faulty}.png": f"{faulty}.png is cut"}}}
        return super().__call__(step, rank, ranks) | faults


def trainer(settings, share, size=100):
    model = toy.Toy(random_layers=False)
    optimizer = build_optimizer(settings.optimizer, model.parameters())
    skipped = SkippedImages({"source": size}, share)
    return Trainer(settings, model, optimizer, FaultyBatches(noise=0.0), callbacks=[SkippedImagesCallback(skipped)])


def counts(folder):
    return {line["step"]: line["skipped_images"] for line in read_metrics(folder / "metrics.jsonl")}


def settings(output, **training):
    return toy.config(output, **{"steps": 12, "log_every": 4, "checkpoint_every": 4, "evaluate_every": None} | training)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_named_once_and_counted(tmp_path, caplog, workers):
    with caplog.at_level(logging.WARNING):
        trainer(settings(tmp_path, workers=workers), 0.03).run()
    assert [record.getMessage().rsplit(": ")[-1] for record in caplog.records] == [
        f"{name} is cut" for name in ("0.png", "10.png", "20.png")
    ]
    assert counts(tmp_path) == {4: 1, 8: 3, 12: 3}
    (kept,) = load_checkpoint(tmp_path / "last.pt")["callbacks"]
    found = kept["found"]
    assert found == {"source": {name: f"{name} is cut" for name in ("0.png", "10.png", "20.png")}}


def test_one_process_stops_at_the_step_that_exceeds_the_share(tmp_path):
    stopped = trainer(settings(tmp_path, log_every=100, checkpoint_every=100), 0.01)
    with pytest.raises(ValueError, match=r"^source: 2 of 100 images .*\n0.png is cut\n10.png is cut$"):
        stopped.run()
    assert stopped.step == 6
    assert not (tmp_path / "last.pt").exists()


def test_what_was_skipped_before_a_checkpoint_counts_after_it(tmp_path, caplog):
    trainer(settings(tmp_path, steps=4), 0.01).run()
    with pytest.raises(ValueError, match=r"^source: 2 of 100 images"):
        trainer(settings(tmp_path), 0.01).run()
    caplog.clear()
    trainer(settings(tmp_path), 0.03).run()
    assert not any(record.getMessage().rsplit(": ")[-1] == "0.png is cut" for record in caplog.records)
    assert counts(tmp_path) == {4: 1, 8: 3, 12: 3}


def test_without_a_count_nothing_is_skipped(tmp_path):
    toy.trainer(settings(tmp_path)).run()
    assert "skipped_images" not in lines_of(tmp_path, "total")[0]
    assert load_checkpoint(tmp_path / "last.pt")["callbacks"] == []


def run_rank(rank, output, share):
    logging.basicConfig(level=logging.WARNING, filename=f"{output}/{rank}.log", format="%(message)s")
    try:
        trainer(settings(output), share).run()
    except ValueError as error:
        return str(error)


def test_two_processes_count_the_images_of_both(ranks, tmp_path):
    assert ranks(run_rank, tmp_path, 0.05, group=False) == [None, None]
    assert counts(tmp_path) == {4: 2, 8: 5, 12: 5}
    named = [line.rsplit(": ")[-1] for line in (tmp_path / "0.log").read_text().splitlines() if "is cut" in line]
    assert named == [f"{name} is cut" for name in ("0.png", "1.png", "10.png", "20.png", "11.png")]
    assert "is cut" not in (tmp_path / "1.log").read_text()


def test_two_processes_stop_together_where_none_has_too_many_alone(ranks, tmp_path):
    first, second = ranks(run_rank, tmp_path, 0.03, group=False)
    assert first == second
    assert first.startswith("source: 4 of 100 images")
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4


class Words:
    """What stands for an encoder where images and captions are only counted."""

    def preprocess(self, image, train):
        return torch.zeros(1)

    def tokenize(self, texts):
        return list(texts)


def test_a_rank_reads_its_own_share_of_a_batch_alone(tmp_path):
    class Counting(Words):
        read = 0

        def preprocess(self, image, train):
            self.read += 1
            return super().preprocess(image, train)

    paths = [str(tmp_path / f"{index}.png") for index in range(12)]
    for path in paths:
        Image.new("RGB", (2, 2)).save(path)
    source = RetrievalDataset("pairs", paths, [f"caption {k // 2} {k % 2}" for k in range(24)], [*range(12)] * 2)
    target = RetrievalDataset("target", paths[::-1], ["one", "two", "three", "four"], [])
    encoder = Counting()
    batches = StepBatches(source, target, encoder, batch_size=4, seed=0)
    for step in range(6):
        whole = batches(step, 0, 1)
        encoder.read = 0
        parts = [batches(step, rank, 2) for rank in range(2)]
        assert encoder.read == 8  # of source and target, twice two images each
        for key in ("source_tokens", "target_tokens"):
            assert parts[0][key] + parts[1][key] == whole[key]
        assert sorted(parts[0]["file_names"] + parts[1]["file_names"]) == sorted(whole["file_names"])


def test_what_is_a_caption_of_an_image_is_never_a_negative_of_it(tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(5)]
    for path in paths:
        Image.new("RGB", (2, 2)).save(path)
    captions = [
        ["two dogs", "one"],
        ["two  Dogs", "grass"],
        ["three"],
        ["grass", "two dogs", "one"],
        ["three", "three"],
    ]
    dataset = RetrievalDataset(
        "pairs", paths, [text for texts in captions for text in texts], [0, 0, 1, 1, 2, 3, 3, 3, 4, 4]
    )
    said = [{" ".join(text.lower().split()) for text in texts} for texts in captions]
    batches = StepBatches(dataset, None, Words(), batch_size=5, seed=0)
    for step in range(40):
        batch = batches(step, 0, 1)
        found = positive_pairs(batch["source_groups"], batch["source_text_groups"])
        images = [int(path.removesuffix(".png").rpartition("/")[2]) for path in batch["file_names"]]
        texts = [" ".join(text.lower().split()) for text in batch["source_tokens"]]
        assert found.tolist() == [[text in said[image] for text in texts] for image in images]


def test_without_equal_captions_an_image_has_the_id_of_itself_alone(tmp_path):
    dataset = RetrievalDataset("pairs", ["a.png", "b.png"], ["one", "one", "two"], [0, 0, 1])
    batches = StepBatches(dataset, None, Words(), batch_size=2, seed=0)
    assert [ids.tolist() for ids in (batches._groups, batches._text_groups)] == [[[0], [1]], [0, 0, 1]]


def test_fewer_images_or_texts_than_a_batch_takes_are_told(caplog):
    source = RetrievalDataset("pairs", ["a.png", "b.png"], ["one", "two"], [0, 1])
    texts = RetrievalDataset("texts", [], ["one", "two", "three"], [])
    StepBatches(source, texts, Words(), batch_size=4, seed=0)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "batch_size=4 is more than the 2 samples of the source",
        "batch_size=4 is more than the 3 samples of the target's texts",
    ]
