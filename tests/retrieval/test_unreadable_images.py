"""Training and evaluation on data with missing and damaged images, and on the formats that store images otherwise."""

import logging
import shutil

import datasets
import pytest
import torch
import webdataset
from accelerate.state import AcceleratorState

from gh_downstream.cli.main import run
from gh_downstream.data.images import open_image
from gh_downstream.retrieval.batches import StepBatches
from gh_downstream.retrieval.config import RetrievalConfig
from gh_downstream.retrieval.data import DataConfig, load_dataset
from gh_downstream.retrieval.data.mini_scenes import make_mini_scenes
from gh_downstream.retrieval.encoders import build_encoder
from gh_downstream.retrieval.encoding import evaluate_model
from gh_downstream.retrieval.engine import build_trainer
from gh_downstream.training import load_config, read_metrics
from tests.kill import lines_of

STEPS = 8
CONFIG = """
output: outputs
encoder: tiny
init: random
encoder_options: {width: 32, layers: 1, embed_dim: 16}
batch_size: 8
alignment: {mmd: {weight: 1.0}}
harmonization: {weighting: gh++}
optimizer: {name: adamw, lr: 0.001, schedule: cosine, warmup_steps: 2}
training: {steps: 8, workers: 0, log_every: 2, evaluate_every: 4, checkpoint_every: 4}
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("unreadable") / "scenes"
    make_mini_scenes(root, train=40, target=30, val=1, test=20, size=32)
    return root


@pytest.fixture
def broken(scenes, tmp_path):
    """A copy with four damaged or missing images: two of the source, one of the target, one of a test set."""
    root = tmp_path / "broken"
    shutil.copytree(scenes, root)
    faulty = [root / name for name in ("source/images/train/000003.png", "target/images/train/000007.png")]
    faulty.append(root / "source/images/test/000005.png")
    for path in faulty:
        path.write_bytes(path.read_bytes()[:200])
    missing = root / "source/images/train/000011.png"
    missing.unlink()
    return root, [*faulty, missing]


def options(root, output, *more):
    return [
        f"source.path={root / 'source' / 'train.csv'}",
        f"target.path={root / 'target' / 'train.jsonl'}",
        "target.side=images",
        f"validation.source.path={root / 'source' / 'test.csv'}",
        f"output={output}",
        "max_skipped=0.05",
        *more,
    ]


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def trainer(config_file):
    def build(root, output, *more):
        AcceleratorState._reset_state(True)
        return build_trainer(load_config(RetrievalConfig, config_file, options(root, output, *more)))

    return build


def weights(folder):
    return torch.load(folder / "last.pt", weights_only=True)["model"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def batches(root, max_skipped=0.05, batch_size=8):
    source = load_dataset(DataConfig(str(root / "source" / "train.csv")))
    target = load_dataset(DataConfig(str(root / "target" / "train.jsonl"), side="images"))
    return StepBatches(source, target, build_encoder("tiny", init="random", image_size=32), batch_size, 0, max_skipped)


# ---- training


def test_another_image_takes_the_place_of_one_that_cannot_be_read(broken, scenes):
    root, faulty = broken[0], {str(path) for path in broken[1]}
    ours, whole = batches(root), batches(scenes)
    replaced = 0
    for step in range(STEPS):
        found, expected = ours(step, 0, 1), whole(step, 0, 1)
        names = [str(root / name.removeprefix(f"{scenes}/")) for name in expected["file_names"]]
        assert found["source_images"].shape == expected["source_images"].shape
        skipped = {name for faults in found.get("skipped", {}).values() for name in faults}
        assert faulty & set(names) <= skipped <= faulty
        for place, (name, other) in enumerate(zip(names, found["file_names"], strict=True)):
            assert other not in faulty
            assert (name == other) == (name not in faulty)
            replaced += name != other
            if place < 8:  # Of the source: pixels, caption and group are those of the image that took its place.
                image = ours.source.images.index(other)
                assert found["source_groups"][place] == found["source_text_groups"][place] == image
                assert torch.equal(found["source_images"][place], ours.encoder.preprocess(open_image(other), True))
                text = ours.source.texts[ours.source.image_of_text.index(image)]
                assert torch.equal(found["source_tokens"][place], ours.encoder.tokenize([text])[0])
        if not skipped:
            assert all(torch.equal(found[key], expected[key]) for key in found if key != "file_names")
    assert replaced >= 3  # In 64 draws of 40 and as many of 30.


def test_what_takes_the_place_does_not_depend_on_the_ranks(broken):
    ours = batches(broken[0])
    for step in range(STEPS):
        whole, *parts = ours(step, 0, 1), ours(step, 0, 2), ours(step, 1, 2)
        for key in ("source_images", "source_tokens", "source_groups", "target_images"):
            assert torch.equal(whole[key], torch.cat([part[key] for part in parts]))
            assert len({part[key].shape for part in parts}) == 1
        assert ours(step, 0, 1)["file_names"] == whole["file_names"]


def test_skipped_images_are_counted_and_named_once(broken, trainer, tmp_path, caplog):
    root, (damaged, target, test, missing) = broken
    with caplog.at_level(logging.WARNING):
        trainer(root, tmp_path / "out").run()
    lines = [line for line in read_metrics(tmp_path / "out" / "metrics.jsonl") if "total" in line]
    counts = [line["skipped_images"] for line in lines]
    assert counts == sorted(counts)
    assert counts[-1] == 3
    for path in (damaged, target, missing):
        assert sum(str(path) in record.getMessage() for record in caplog.records) == 1
    # That of step 0, and two more.
    assert sum(str(test) in record.getMessage() for record in caplog.records) == 3


@pytest.mark.slow
def test_neither_workers_nor_an_interruption_change_the_result(broken, trainer, tmp_path, caplog):
    root, faulty = broken
    trainer(root, tmp_path / "whole").run()
    trainer(root, tmp_path / "workers", "training.workers=2").run()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "workers"))

    for workers in (0, 2):
        output = tmp_path / f"interrupted {workers}"
        interrupted = trainer(root, output, f"training.workers={workers}")
        interrupted.batches = Interrupted(interrupted.batches, step=6)
        with pytest.raises(OSError, match="pulled the plug"):
            interrupted.run()
        caplog.clear()
        # What is allowed is no part of the result, so that a run that had to stop can go on.
        trainer(root, output, f"training.workers={workers}", "max_skipped=0.06").run()
        assert same(weights(tmp_path / "whole"), weights(output))
        assert lines_of(output) == lines_of(tmp_path / "whole")
        (kept,) = torch.load(output / "last.pt", weights_only=True)["callbacks"]
        assert {name for faults in kept["found"].values() for name in faults} == {
            str(path) for path in faulty if path.parent.name == "train"
        }


class Interrupted:
    def __init__(self, batches, step):
        self.batches, self.step = batches, step

    def __call__(self, step, rank, ranks):
        if step == self.step:
            raise OSError("someone pulled the plug")
        return self.batches(step, rank, ranks)


def test_more_than_the_share_stop_the_training_with_their_names(broken, config_file, tmp_path, capsys):
    root, (damaged, _, _, missing) = broken
    arguments = ["--config", config_file, *options(root, tmp_path / "out", "max_skipped=0.04")]
    assert run(["train", *arguments]) == 2
    message = capsys.readouterr().err
    assert "error: source: 2 of 40 images cannot be read, more than max_skipped=0.04 allows" in message
    assert f"{damaged} is not a readable image" in message
    assert f"{missing} does not exist" in message
    assert not (tmp_path / "out" / "last.pt").exists()


def test_data_without_a_readable_image_stop_in_their_first_batch(scenes, tmp_path):
    root = tmp_path / "none"
    shutil.copytree(scenes, root)
    shutil.rmtree(root / "source" / "images" / "train")
    with pytest.raises(ValueError, match=r"source: 39 of 40 images cannot be read, more than max_skipped=0.95"):
        batches(root, max_skipped=0.95)(0, 0, 1)
    with pytest.raises(ValueError, match=r"source: 1 of 40 images cannot be read, more than max_skipped=0 "):
        batches(root, max_skipped=0.0)(0, 0, 1)


@pytest.mark.parametrize("share", ["-0.1", "1"])
def test_a_share_is_at_least_0_and_less_than_1(scenes, config_file, tmp_path, capsys, share):
    arguments = ["--config", config_file, *options(scenes, tmp_path / "out"), f"max_skipped={share}"]
    assert run(["train", *arguments]) == 2
    assert "max_skipped must be at least 0 and below 1" in capsys.readouterr().err


# ---- evaluation


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_does_without_the_image_and_its_captions(scenes, tmp_path, caplog, workers):
    root = tmp_path / "source"
    shutil.copytree(scenes / "source", root)
    rows = (root / "test.csv").read_text().splitlines()
    faulty = [0, 1, 7]
    # Three captions for some images.
    rows += [f"{row} again" for row in rows[1:12]] * 2
    (root / "test.csv").write_text("\n".join(rows) + "\n")
    (root / "kept.csv").write_text("\n".join(row for row in rows if not any(f"{n:06d}" in row for n in faulty)) + "\n")
    for number in faulty:
        (root / f"images/test/{number:06d}.png").write_bytes(b"")
    full, kept = (load_dataset(DataConfig(str(root / name))) for name in ("test.csv", "kept.csv"))
    encoder = build_encoder("tiny", init="random", image_size=32).eval()
    with caplog.at_level(logging.WARNING):
        result = evaluate_model(encoder, {"a": full}, workers, batch_size=2, max_skipped=0.15)["a"]
    assert (result.num_images, result.num_texts) == (17, len(kept.texts))
    assert result.metrics == evaluate_model(encoder, {"a": kept})["a"].metrics
    assert [record.getMessage().split(" is not")[0].split(": ")[-1] for record in caplog.records] == [
        full.images[number] for number in faulty
    ]
    with pytest.raises(ValueError, match=r"^validation.a: . of 20 images cannot be read, .* max_skipped=0.1 ") as error:
        evaluate_model(encoder, {"a": full}, workers, max_skipped=0.1)
    assert full.images[0] in str(error.value)


# ---- --check


def test_check_stops_before_training_with_every_path(broken, config_file, tmp_path, capsys):
    root, faulty = broken
    more = [root / "target" / "images" / "train" / f"{number:06d}.png" for number in range(10, 20)]
    for path in more:
        path.unlink()
    faulty = [*faulty, *more]
    arguments = ["--check", "--config", config_file, *options(root, tmp_path / "out")]
    assert run(["train", *arguments]) == 2
    message = capsys.readouterr().err
    assert "error: 14 of 90 images cannot be read" in message
    assert all(str(path) in message for path in faulty)
    assert not (tmp_path / "out").exists()


def test_check_of_whole_data_says_so_and_does_not_train(scenes, config_file, tmp_path, caplog):
    arguments = ["--check", "--config", config_file, *options(scenes, tmp_path / "out"), "training.steps=3"]
    with caplog.at_level(logging.INFO):
        assert run(["train", *arguments]) == 0
    assert "all 90 images can be read" in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_missing_image_of_the_validation_is_found_before_the_first_step(broken, config_file, tmp_path, capsys):
    root, (_, _, test, _) = broken
    for number in range(5, 8):
        (test.parent / f"{number:06d}.png").unlink()
    assert run(["train", "--config", config_file, *options(root, tmp_path / "out", "max_skipped=0.1")]) == 2
    message = capsys.readouterr().err
    assert "error: validation.source: 3 of 20 images cannot be read, more than max_skipped=0.1 allows" in message
    assert f"{test} does not exist" in message
    assert not (tmp_path / "out").exists()


# ---- the same data in other formats


def as_shards(table, folder):
    """Write pairs of a data set as two shards."""
    data = load_dataset(DataConfig(str(table)))
    folder.mkdir()
    for part in range(2):
        with webdataset.TarWriter(str(folder / f"{part}.tar")) as writer:
            for index in range(len(data.images) * part // 2, len(data.images) * (part + 1) // 2):
                with open(data.images[index], "rb") as file:
                    writer.write({"__key__": f"{index:04d}", "png": file.read(), "txt": data.texts[index]})
    return f"{folder}/{{0..1}}.tar"


def as_saved(table, folder):
    """Write pairs of a data set with Hugging Face's library."""
    datasets.disable_progress_bars()
    data = load_dataset(DataConfig(str(table)))
    saved = datasets.Dataset.from_dict({"image": list(data.images), "caption": data.texts})
    saved.cast_column("image", datasets.Image()).save_to_disk(str(folder))
    return str(folder)


@pytest.mark.parametrize("write", [as_shards, as_saved])
def test_shards_and_saved_data_sets_train_as_the_files_do(scenes, trainer, tmp_path, write):
    trainer(scenes, tmp_path / "files").run()
    paths = {
        "source": write(scenes / "source" / "train.csv", tmp_path / "source"),
        "target": write(scenes / "target" / "train.jsonl", tmp_path / "target"),
        "validation.source": write(scenes / "source" / "test.csv", tmp_path / "test"),
    }
    trainer(
        scenes, tmp_path / "out", *(f"{key}.path={path}" for key, path in paths.items()), "training.workers=2"
    ).run()
    assert same(weights(tmp_path / "files"), weights(tmp_path / "out"))
    assert lines_of(tmp_path / "files") == lines_of(tmp_path / "out")
