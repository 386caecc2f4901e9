import hashlib
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from gh_downstream.classification.data import DataConfig, load_dataset
from gh_downstream.classification.data.embedded import divide

SETS = [(domain, split) for domain in ("source", "target") for split in ("train", "test")]


def load(domain, split):
    return load_dataset(DataConfig("embedded", split=split, domain=domain))


def pixels(dataset):
    return np.stack(dataset.images)


def test_the_four_sets_share_no_digit_and_leave_none_out():
    parts = divide(load_digits().target)
    assert sorted(parts) == sorted(SETS)
    indices = np.concatenate(list(parts.values()))
    assert sorted(indices) == list(range(1797))
    assert all(len(load(*key)) == len(part) for key, part in parts.items())


def test_the_shares_are_the_same_within_each_class():
    labels = load_digits().target
    for (_, split), part in divide(labels).items():
        share = np.bincount(labels[part]) / np.bincount(labels)
        assert share == pytest.approx(0.35 if split == "train" else 0.15, abs=0.005)


@pytest.mark.parametrize(("domain", "split"), SETS)
def test_images_are_digits_with_the_labels_of_scikit_learn(domain, split):
    dataset = load(domain, split)
    assert dataset.classes == tuple("0123456789")
    assert pixels(dataset).shape == (len(dataset), 28, 28)
    assert pixels(dataset).dtype == np.uint8
    assert dataset.image(0).mode == "RGB"
    labels = load_digits().target
    assert dataset.labels == tuple(labels[divide(labels)[domain, split]])


def test_the_source_is_the_digit_itself_drawn_larger():
    digits = load_digits()
    originals = digits.images[divide(digits.target)["source", "train"]]
    centres = np.round((np.arange(8) + 0.5) * 3.5 - 0.5).astype(int)  # of the original pixels
    for image, original in zip(load("source", "train").images, originals, strict=True):
        assert np.corrcoef(image[np.ix_(centres, centres)].ravel(), original.ravel())[0, 1] > 0.9


@pytest.mark.slow
def test_another_process_makes_the_same_bytes():
    code = (
        "import hashlib; from gh_downstream.classification.data import DataConfig, load_dataset\n"
        "data = load_dataset(DataConfig('embedded', split='test', domain='target'))\n"
        "print(hashlib.sha256(b''.join(image.tobytes() for image in data.images)).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == hashlib.sha256(pixels(load("target", "test")).tobytes()).hexdigest()


def test_the_target_is_smaller_and_fainter_on_a_background_that_is_not_black():
    source, target = pixels(load("source", "train")) / 255, pixels(load("target", "train")) / 255
    edges = np.r_[:2, 26:28]  # left and right, where there is little ink
    assert np.median(source[..., edges]) == 0
    assert (np.median(target[..., edges], axis=(1, 2)) > 0).mean() > 0.9
    assert target[..., edges].std(axis=(1, 2)).min() > 0.01
    assert np.median(source.max(axis=(1, 2))) > 0.95 > 0.8 > np.median(target.max(axis=(1, 2)))
    heights = [np.median((images > 0.4).any(axis=2).sum(axis=1)) for images in (source, target)]
    assert 0.7 < heights[1] / heights[0] < 0.95


def test_the_target_has_thinner_and_thicker_strokes_than_the_source():
    source, target = pixels(load("source", "train")) / 255, pixels(load("target", "train")) / 255
    ink = [(images > images.max(axis=(1, 2), keepdims=True) / 2).mean(axis=(1, 2)) for images in (source, target)]
    assert ink[1].std() > 1.5 * ink[0].std()
    assert np.quantile(ink[1], 0.1) < np.quantile(ink[0], 0.1)


def test_nothing_of_the_target_depends_on_what_was_drawn_before():
    first = load("target", "test")
    np.random.seed(1)
    load("target", "train")
    assert (pixels(load("target", "test")) == pixels(first)).all()
