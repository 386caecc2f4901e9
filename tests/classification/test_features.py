"""What a frozen backbone makes of images, kept in files, and trainings on it."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from gh_downstream.classification.backbones import build_backbone
from gh_downstream.classification.config import ClassificationConfig
from gh_downstream.classification.data import build_transform, load_dataset
from gh_downstream.classification.engine import build_trainer
from gh_downstream.classification.features import cache_features, with_features
from gh_downstream.cli.main import run
from gh_downstream.training import ConfigError, load_config

TRAINING = ("bottleneck=8", "training.workers=0", "batch_size=4", "method_options.dann.hidden=8")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)


def draw(path, level, side=28):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(level).integers(0, 40, (side, side), dtype=np.uint8) + np.uint8(level)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def words(tmp_path):
    """A configuration on two domains of two classes, and weights, in a folder with a space in its name."""
    photos = tmp_path / "my photos"
    for k in range(6):
        draw(photos / "shop" / ("dark", "light")[k % 2] / f"{k}.png", 200 * (k % 2) + k)
        draw(photos / "phone" / ("dark", "light")[k % 2] / f"{k}.png", 180 * (k % 2) + k + 10)
    draw(photos / "phone" / "unsorted.png", 90)  # a target needs no classes
    torch.manual_seed(0)
    torch.save(build_backbone("digits").trunk.state_dict(), tmp_path / "weights.pt")
    return {
        "output": tmp_path / "run",
        "backbone": "digits",
        "weights": tmp_path / "weights.pt",
        "features": tmp_path / "features",
        "training.steps": 3,
        "source.format": "folder",
        "source.path": photos / "shop",
        "target.format": "folder",
        "target.path": photos / "phone",
        "validation.target.format": "folder",
        "validation.target.path": photos / "phone",
    }


def listed(words, *more):
    return [*(f"{key}={value}" for key, value in words.items()), *more]


def configured(words, *more):
    return load_config(ClassificationConfig, None, listed(words, *more))


def attached(config, data, labels=True):
    return with_features(config, data, load_dataset(data, labels))


def test_the_features_are_those_of_the_frozen_backbone_without_augmentation(words):
    config = configured(words, "evaluation_batch_size=4")
    cache_features(config)
    trunk = build_backbone("digits", str(words["weights"])).trunk.eval()
    for data, labels, count in ((config.source, True, 6), (config.target, False, 7)):
        dataset = attached(config, data, labels)
        assert dataset.num_features == 128
        assert len(dataset) == count
        for k in range(count):
            image = build_transform("digits")(dataset.image(k), False, None)
            with torch.no_grad():
                torch.testing.assert_close(dataset.features[k], trunk(image[None])[0])
    assert attached(config, config.validation["target"]).labels == (0, 0, 0, 1, 1, 1)
    assert len(list(words["features"].iterdir())) == 2  # the target is evaluated on what it is aligned with


def test_images_in_memory_have_features_too(words, tmp_path):
    embedded = {key: value for key, value in words.items() if not key.startswith(("source", "target", "validation"))}
    config = configured(embedded, "source.format=embedded", "source.domain=source")
    cache_features(config)
    assert attached(config, config.source).features.shape == (len(load_dataset(config.source)), 128)


@pytest.mark.parametrize("method", ["dann", "cdan", "mcd", "gvb", "dwl"])
def test_every_method_trains_on_features_alone(words, method):
    cache_features(configured(words))
    config = configured(words, *TRAINING, f"method={method}", "harmonization.weighting=gh++")
    trainer = build_trainer(config)
    metrics = trainer.run()
    assert not [name for name in trainer.model.state_dict() if "trunk" in name]
    assert 0 <= metrics["target/accuracy"] <= 100


def test_a_training_on_features_is_that_of_the_images_with_a_backbone_that_stays(words):
    cache_features(configured(words))
    still = [*TRAINING, "method=dann", "harmonization.weighting=gh", "training.best_metric=null"]
    on_features = build_trainer(configured(words, *still))
    on_images = build_trainer(configured(words | {"features": "null"}, *still, f"output={words['output']}2"))
    on_images.model.backbone.trunk.requires_grad_(False)
    on_images.model.load_state_dict(on_features.model.state_dict(), strict=False)
    assert on_features.run() == on_images.run()
    after = on_images.model.state_dict()
    for name, value in on_features.model.state_dict().items():
        torch.testing.assert_close(value, after[name])


def test_new_images_pass_the_backbone_first(words, tmp_path):
    cache_features(configured(words))
    more = [*TRAINING, "training.steps=20", "method=source_only"]
    build_trainer(configured(words, *more)).run()
    found = json.loads((words["output"] / "results.json").read_text())["results"]["target"]
    table = tmp_path / "table.csv"
    at = ["--config", str(words["output"] / "config.yaml"), "--checkpoint", str(words["output"] / "last.pt")]
    assert run(["predict", *at, "--images", str(words["target.path"]), "--output", str(table)]) == 0
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    right = [Path(file).parent.name == name for file, name, _ in rows if "unsorted" not in file]
    assert 100 * sum(right) / 6 == pytest.approx(found["accuracy"])
    assert run(["evaluate", *at]) == 0


def replace_image(words):
    draw(words["source.path"] / "light" / "3.png", 100, side=40)


def add_image(words):
    draw(words["source.path"] / "light" / "more.png", 100)


def replace_weights(words):
    torch.manual_seed(1)
    torch.save(build_backbone("digits").trunk.state_dict(), words["weights"])


def damage(words):
    (path,) = words["features"].glob("shop-*")
    path.write_bytes(path.read_bytes()[:-100])


def overwrite(words):
    (path,) = words["features"].glob("shop-*")
    np.savez(path, features=np.zeros((6, 128)))


def remove(words):
    (path,) = words["features"].glob("shop-*")
    path.unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (replace_image, r"lacks 1 images of .*shop as they are now, such as .*light/3\.png"),
        (add_image, r"lacks 1 images of .*shop as they are now, such as .*light/more\.png"),
        (replace_weights, "was made with other content of the weights"),
        (damage, "cannot be read"),
        (overwrite, "cannot be read"),
        (remove, "is not there"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_stale_is_refused_with_the_command_that_renews_it(words, change, reason, capsys):
    cache_features(configured(words))
    change(words)
    with pytest.raises(ValueError, match=rf"shop-digits-\w+\.npz {reason}") as error:
        build_trainer(configured(words, *TRAINING))
    assert "\n" not in str(error.value)
    command = shlex.split(str(error.value)[str(error.value).index("gh-downstream") :])
    assert run(command[1:]) == 0
    build_trainer(configured(words, *TRAINING))


def test_other_weights_or_images_have_other_files(words):
    cache_features(configured(words))
    other = words["weights"].with_name("other.pt")
    torch.save(build_backbone("digits").trunk.state_dict(), other)
    with pytest.raises(ValueError, match="is not there"):
        build_trainer(configured(words | {"weights": other}, *TRAINING))


def test_what_is_there_is_left_alone(words, caplog):
    config = configured(words)
    cache_features(config)
    before = {path: path.stat().st_mtime_ns for path in words["features"].iterdir()}
    (words["source.path"] / "dark" / "0.png").unlink()  # what is left has its features
    cache_features(config)
    assert {path: path.stat().st_mtime_ns for path in words["features"].iterdir()} == before
    assert len(attached(config, config.source)) == 5


@pytest.mark.slow
def test_before_a_comparison_what_is_missing_is_made_and_what_is_stale_refused(words, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("method: dann\ntransform: digits\n")
    more = ["--weightings", "sum", "--seeds", "1", "--jobs", "1", *listed(words, *TRAINING)[1:]]
    command = ["compare", "--config", str(file), "--engine", "classification", "--output", str(tmp_path / "out"), *more]
    assert run(command) == 0
    replace_image(words)
    assert run(command) == 0  # the report of runs that are finished needs no images
    capsys.readouterr()
    assert run([*command, "--seeds", "2"]) == 2
    assert "light/3.png: gh-downstream data features " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": "null"}, r"where to\? give features=FOLDER"),
        ({"weights": "null"}, "features of a frozen backbone with random weights say nothing: give weights"),
    ],
)
def test_features_need_a_folder_and_weights(words, changes, message):
    with pytest.raises(ValueError, match=message):
        cache_features(configured(words | changes))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("method=ssrt",), "ssrt works within a vision transformer: leave features=null"),
        (("method=dann",), "the backbone of features is frozen: dann harmonizes the bottleneck, set one"),
    ],
)
def test_methods_that_would_have_nothing_to_train_are_refused(words, more, message):
    with pytest.raises(ConfigError, match=message):
        configured(words, *more)
