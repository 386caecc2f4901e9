"""Embedded digits: two domains of real handwriting with no download.

scikit-learn brings 1797 real handwritten digits of 8x8 pixels (``load_digits``, from the UCI Machine Learning
Repository). One half of them, drawn larger, is the source. The other half is the target, in a rendering of ours: each
digit is smaller, slants, has a thinner or a thicker stroke, and stands out less from a background of its own, with a
slope of brightness and a texture.
"""

from collections import defaultdict

import numpy as np
from scipy import ndimage

from gh_downstream.classification.data.records import ClassificationDataset

SIZE = 28  # side of an image in pixels
DOMAINS = ("source", "target")
_SEED = 0  # of the division and the rendering: one data set, the same for everybody
_TRAIN = 0.7  # share of a domain's images of a class
_INKS = 16  # grey levels of scikit-learn's digits
_SCALE = (0.75, 0.85)  # of the target's digits
_SLANT = (0.05, 0.25)  # shear, as a tangent
_LEVEL = (0.0, 0.1)  # brightness of the background in its middle
_CONTRAST = (0.5, 0.7)  # between background and ink
_SLOPE = 0.1  # largest difference of brightness over the background
_TEXTURE = 0.04  # standard deviation of the background


def load_embedded(domain: str, split: str) -> ClassificationDataset:
    """Return the images of one domain and split, as ``uint8`` of shape ``[28, 28]``.

    The four sets share no digit and are divided alike within each class. The same call gives the same pixels (with the
    same versions of scikit-learn and SciPy). ``train`` has about 630 images, ``test`` about 270.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    chosen = divide(labels)[domain, split]
    ink = images.reshape(-1, 8, 8)[chosen] / _INKS
    if domain == "source":
        pixels = [_quantized(_enlarged(digit)) for digit in ink]  # light on black
    else:
        pixels = [_shifted(digit, index) for index, digit in zip(chosen, ink, strict=True)]
    return ClassificationDataset(
        f"embedded {domain} {split}", pixels, tuple(labels[chosen].tolist()), tuple(map(str, range(10)))
    )


def divide(labels: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """Share digits of the labels ``[N]`` out: sorted indices by ``(domain, split)``, each index in one of them."""
    generator = np.random.default_rng(_SEED)
    parts: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    for label in np.unique(labels):
        shuffled = generator.permutation(np.flatnonzero(labels == label))
        for domain, half in zip(DOMAINS, np.array_split(shuffled, 2), strict=True):
            train = round(_TRAIN * len(half))
            parts[domain, "train"].append(half[:train])
            parts[domain, "test"].append(half[train:])
    return {key: np.sort(np.concatenate(indices)) for key, indices in parts.items()}


def _shifted(ink: np.ndarray, index: int) -> np.ndarray:
    """Draw a digit in the manner of the target, which depends on its index."""
    generator = np.random.default_rng((_SEED, index))
    drawn = _enlarged(ink)
    shear, scale = generator.uniform(*_SLANT), generator.uniform(*_SCALE)
    inverse = np.array([[1 / scale, 0], [shear, 1 / scale]])  # from the place in the target to that in the source
    middle = np.full(2, (SIZE - 1) / 2)
    drawn = ndimage.affine_transform(drawn, inverse, offset=middle - inverse @ middle, order=1)
    stroke = ndimage.grey_dilation if generator.random() < 0.5 else ndimage.grey_erosion
    drawn = stroke(drawn, size=(3, 3))

    angle = generator.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:SIZE, :SIZE] / (SIZE - 1) - 0.5
    slope = generator.uniform(0, _SLOPE) * (np.cos(angle) * x + np.sin(angle) * y)
    texture = ndimage.gaussian_filter(generator.normal(size=(SIZE, SIZE)), sigma=generator.uniform(0.7, 2))
    background = generator.uniform(*_LEVEL) + slope + _TEXTURE * texture / texture.std()
    return _quantized(background + generator.uniform(*_CONTRAST) * drawn)


def _enlarged(ink: np.ndarray) -> np.ndarray:
    """Interpolate a digit of shape [8, 8] with cubic splines; ink in 0 to 1 of shape [SIZE, SIZE]."""
    enlarged = ndimage.zoom(ink, SIZE / len(ink), order=3, mode="grid-constant", grid_mode=True)
    return np.clip(enlarged, 0, 1)


def _quantized(image: np.ndarray) -> np.ndarray:
    """Brightness in 0 to 1 as pixels."""
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
