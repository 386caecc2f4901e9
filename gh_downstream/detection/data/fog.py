r"""Synthetic fog by Koschmieder's law, as in Foggy Cityscapes (Sakaridis, Dai and Van Gool, IJCV 2018).

.. math:: F = I\,t + A\,(1 - t), \qquad t = e^{-\beta d}

with the clear image :math:`I`, the airlight :math:`A`, the depth :math:`d` in metres and the attenuation coefficient
:math:`\beta` in 1/m, here called the fog's density. Objects fade into the airlight at about :math:`3/\beta` metres:
600, 300 and 150 m at Foggy Cityscapes' 0.005, 0.01 and 0.02.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gh_downstream.detection.data.cityscapes import find_images, image_suffix, unpacking_advice
from gh_downstream.detection.data.images import read_rgb, read_uint16, write_png
from gh_downstream.detection.data.records import readable

logger = logging.getLogger(__name__)

FOG_DENSITIES = (0.005, 0.01, 0.02)
"""The densities of Foggy Cityscapes, in 1/m; results are compared at the last."""


def add_fog(image: np.ndarray, depth: np.ndarray, beta: float, airlight: Sequence[float] | np.ndarray) -> np.ndarray:
    """Add homogeneous fog to an image.

    Args:
        image: uint8 RGB of shape ``[H, W, 3]``, as what is returned.
        depth: Depth in metres, ``[H, W]``; infinite where nothing but air is.
        beta: Attenuation coefficient in 1/m, positive.
        airlight: Colour of the fog, three values of 0 to 255.

    Raises:
        ValueError: If the shapes do not fit, ``beta`` is not positive, or a depth is negative or NaN.
    """
    if image.dtype != np.uint8 or image.shape != (*depth.shape, 3):
        raise ValueError(f"expected a uint8 image of shape {(*depth.shape, 3)}, got {image.dtype} {image.shape}")
    if not beta > 0:
        raise ValueError(f"the fog's density beta is {beta}; it must be positive")
    if not (depth >= 0).all():
        raise ValueError("a depth is negative or NaN; depths are metres of 0 or more")
    transmission = np.exp(-beta * depth.astype(np.float32))[..., None]
    light = np.asarray(airlight, np.float32)
    return np.clip(np.rint(light + (image - light) * transmission), 0, 255).astype(np.uint8)


def estimate_airlight(image: np.ndarray) -> np.ndarray:
    """Estimate the colour of the airlight by the dark channel (He, Sun and Tang, CVPR 2009).

    It is the mean colour, three values of 0 to 255, of the 0.1 % of patches (of a 32nd of the image's height) that are
    brightest in their darkest value; mostly sky. The clear image is uint8 RGB of shape ``[H, W, 3]``.
    """
    height, width, _ = image.shape
    size = max(1, height // 32)
    patches = image[: height // size * size, : width // size * size].reshape(height // size, size, -1, size, 3)
    patches = patches.swapaxes(1, 2).reshape(-1, size * size, 3)
    brightest = np.argsort(patches.min(axis=(1, 2)), kind="stable")[-max(1, len(patches) // 1000) :]
    return patches[brightest].mean(axis=(0, 1))


def depth_from_disparity(disparity: np.ndarray, baseline: float, focal_length: float) -> np.ndarray:
    """Turn a disparity map of Cityscapes into depth.

    Stored values ``p > 0`` are disparities of ``(p - 1) / 256`` pixels, and a disparity of 0 is infinitely far.
    ``p = 0`` marks pixels that stereo matching left open: they take the depth of the nearest matched pixel of
    their row (of the left one, at equal distance); a row without any takes the nearest row that has one.

    Args:
        disparity: uint16 of shape ``[H, W]``, as stored.
        baseline: Distance of the two cameras in metres.
        focal_length: Horizontal focal length in pixels.

    Returns:
        ``baseline * focal_length / disparity``: depth in metres, float32 of shape ``[H, W]``.

    Raises:
        ValueError: If no pixel is valid.
    """
    valid = disparity > 0
    if not valid.any():
        raise ValueError("no pixel has a disparity")
    filled_rows = np.take_along_axis(disparity, _nearest(valid), axis=1)
    rows = _nearest(np.any(valid, axis=1, keepdims=True).T)[0]
    with np.errstate(divide="ignore"):
        return np.float32(256 * baseline * focal_length) / (filled_rows[rows].astype(np.float32) - 1)


def _nearest(valid: np.ndarray) -> np.ndarray:
    """Index of the nearest valid entry along the last axis; any index in rows that have none."""
    length = valid.shape[-1]
    index = np.arange(length)
    before = np.maximum.accumulate(np.where(valid, index, -length), axis=-1)
    after = np.minimum.accumulate(np.where(valid, index, 2 * length)[..., ::-1], axis=-1)[..., ::-1]
    return np.clip(np.where(index - before <= after - index, before, after), 0, length - 1)


def make_foggy_split(
    root: str | Path, split: str, betas: Sequence[float] = FOG_DENSITIES, airlight: Sequence[float] | None = None
) -> int:
    """Write ``leftImg8bit_foggy`` next to ``leftImg8bit``, from the disparity and camera files of Cityscapes.

    Images that exist are left as they are, so a stopped run can be taken up again. Returns the number of those written.

    Args:
        root: Folder that holds ``leftImg8bit``, ``disparity`` and ``camera``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        betas: Densities of the fog in 1/m.
        airlight: Colour of the fog, three values of 0 to 255; estimated from each image by default.

    Raises:
        FileNotFoundError: If there are no clear images, or one lacks its disparity or camera file.
        ValueError: If a file is corrupt or does not fit its image.
    """
    root = Path(root)
    images = find_images(root, split)
    written = 0
    for path in images:
        frame = path.name.removesuffix(image_suffix(None))
        folder = root / "leftImg8bit_foggy" / split / path.parent.name
        missing = {beta: target for beta in betas if not (target := folder / f"{frame}{image_suffix(beta)}").is_file()}
        if not missing:
            continue
        image = read_rgb(path, unpacking_advice(root, "leftImg8bit"))
        depth = _read_depth(root, split, path.parent.name, frame)
        if depth.shape != image.shape[:2]:
            raise ValueError(f"the disparity map of {path} is of shape {depth.shape}, the image of {image.shape[:2]}")
        light = estimate_airlight(image) if airlight is None else airlight
        for beta, target in missing.items():
            write_png(target, add_fog(image, depth, beta, light))
        written += len(missing)
    logger.info(
        f"{root / 'leftImg8bit_foggy' / split}: {written} foggy images written, "
        f"{len(images) * len(betas) - written} were there already"
    )
    return written


def _read_depth(root: Path, split: str, city: str, frame: str) -> np.ndarray:
    camera_path = root / "camera" / split / city / f"{frame}_camera.json"
    disparity_path = root / "disparity" / split / city / f"{frame}_disparity.png"
    with readable(camera_path, "camera file", unpacking_advice(root, "camera")):
        camera = json.loads(camera_path.read_text(encoding="utf-8"))
        baseline, focal_length = camera["extrinsic"]["baseline"], camera["intrinsic"]["fx"]
    disparity = read_uint16(disparity_path, unpacking_advice(root, "disparity"))
    try:
        return depth_from_disparity(disparity, baseline, focal_length)
    except ValueError as error:
        raise ValueError(f"{disparity_path}: {error}") from error
