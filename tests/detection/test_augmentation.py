"""The strong view: photometric alone, reproducible, and with the published probabilities."""

import numpy as np
import pytest
import torch

from gh_downstream.detection.augmentation import strong_view

DRAWS = 400


def views(image, count, image_format="BGR"):
    for seed in range(count):
        torch.manual_seed(seed)
        yield strong_view(image, image_format)


def noise(height=24, width=32):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def share(flags):
    flags = list(flags)
    return sum(flags) / len(flags)


def approx(probability):
    """Within four standard deviations of a binomial share."""
    return pytest.approx(probability, abs=4 * (probability * (1 - probability) / DRAWS) ** 0.5)


def test_the_same_seed_gives_the_same_pixels_and_the_image_stays():
    image = noise()
    kept = image.copy()
    first, second = list(views(image, 20)), list(views(image, 20))
    for a, b in zip(first, second, strict=True):
        assert a.dtype == np.uint8
        assert a.shape == image.shape
        assert a.flags.c_contiguous
        np.testing.assert_array_equal(a, b)
    assert len({view.tobytes() for view in first}) > 15
    np.testing.assert_array_equal(image, kept)
    assert not any(np.shares_memory(view, image) for view in first)


def test_nothing_moves():
    """On average over the draws, a bright box is where it was."""
    image = np.full((60, 80, 3), 40, np.uint8)
    image[20:40, 30:60] = 200
    mean = np.mean([view.astype(float) for view in views(image, 120)], axis=(0, 3))
    bright = mean > (mean.min() + mean.max()) / 2
    np.testing.assert_array_equal(bright, image[..., 0] == 200)


def test_the_channels_have_an_order():
    image = noise()
    for bgr, rgb in zip(views(image, 40, "BGR"), views(image[..., ::-1], 40, "RGB"), strict=True):
        np.testing.assert_array_equal(bgr, rgb[..., ::-1])
    # In gray, red is brighter than blue.
    red_and_blue = np.zeros((24, 32, 3), np.uint8)
    red_and_blue[:, :16, 2] = red_and_blue[:, 16:, 0] = 200
    gray = [view for view in views(red_and_blue, 200) if is_gray(view)]
    assert len(gray) > 20
    red, blue = np.split(np.mean(gray, axis=0), 2, axis=1)
    assert red.mean() > blue.mean() + 10


def is_gray(view):
    """Most pixels; the others are erased."""
    return share((view == view[..., :1]).all(-1).ravel()) > 0.3


def test_probabilities_of_jitter_and_erasing():
    """What is done to a plain image: jitter changes all of it, erasing makes parts of it noise."""
    plain = np.full((20, 30, 3), 100, np.uint8)
    jittered, erased, filled = [], [], []
    for view in views(plain, DRAWS):
        values, counts = np.unique(view.reshape(-1, 3), axis=0, return_counts=True)
        colour = values[counts.argmax()]
        noisy = (view != colour).any(-1)
        jittered.append((colour != 100).any())
        erased.append(noisy.any())
        filled.extend(view[noisy].ravel())
    assert share(jittered) == approx(0.8)
    assert share(erased) == approx(1 - 0.3 * 0.5 * 0.7)
    # Noise around middle grey, cut off at black and white.
    assert 110 < np.mean(filled) < 145
    assert 40 < np.std(filled) < 90


def test_probabilities_of_grayscale_and_blur():
    stripes = np.empty((24, 32, 3), np.uint8)
    stripes[:, ::2], stripes[:, 1::2] = (90, 140, 200), (20, 30, 50)
    gray, blurred = [], []
    for view in views(stripes, DRAWS):
        gray.append(is_gray(view))
        blurred.append(contrast(view) < 0.2)
    assert share(gray) == approx(0.2)
    # Half of the images are blurred, and of these most, but not all, so much that columns of one pixel vanish.
    assert 0.25 < share(blurred) < 0.5


def contrast(view):
    """Typical difference of neighbours, as a share of the typical brightest value."""
    values = view.astype(float).max(-1)
    return np.median(np.abs(np.diff(values, axis=1))) / max(np.median(values[:, ::2]), 1)


@pytest.mark.parametrize(
    ("image", "image_format", "expected"),
    [
        (noise(), "L", "INPUT.FORMAT"),
        (noise()[..., :1], "BGR", "H, W, 3"),
        (noise().astype(np.float32), "BGR", "uint8"),
    ],
)
def test_another_image_is_refused(image, image_format, expected):
    with pytest.raises(ValueError, match=expected):
        strong_view(image, image_format)
